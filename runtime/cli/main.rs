//! The `fsq` command: reads arguments, joins the crates, and decides exit codes.

#[cfg(feature = "train")]
mod base;
mod bench;
mod calibrate;
#[cfg(feature = "serve")]
mod chat;
mod compare;
#[cfg(feature = "train")]
mod data;
#[cfg(all(feature = "train", feature = "serve"))]
mod demo;
mod devices;
#[cfg(feature = "train")]
mod environment;
#[cfg(feature = "train")]
mod evaluate;
mod failure;
#[cfg(feature = "train")]
mod gate;
mod identity;
#[cfg(feature = "train")]
mod importance;
mod inspect;
mod logits;
mod output;
mod policy;
mod progress;
mod quantize;
mod report;
mod run;
mod sampling;
mod serve;
#[cfg(feature = "train")]
mod stamp;
#[cfg(feature = "train")]
mod study;
#[cfg(feature = "train")]
mod train;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use fsq_kernels::Cpu;

use failure::{Outcome, Refusal};

/// Training makes and frees buffers of megabytes all the time; this allocator keeps them, where the system's gives
/// them back page by page and a third of the time goes into faults.
#[cfg(feature = "train")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Trains an agent policy that says what will happen before it acts, quantizes it without losing that foresight,
/// and serves it.
///
/// Exit codes: 0 done or pass, 1 unexpected, 2 a gate failed, 3 inconclusive, 4 bad input.
#[derive(Parser)]
#[command(name = "fsq", version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
struct Arguments {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Args)]
pub(crate) struct Globals {
    /// Print one JSON document to standard output, and nothing else there
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Where policies run
    #[arg(long, global = true, value_enum, default_value_t = Device::Auto)]
    device: Device,
    /// Threads that compute [default: as many as there are processors]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// Devices by the names of their interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Device {
    Auto,
    Cpu,
    Cuda,
    Vulkan,
    Metal,
}

#[derive(Subcommand)]
enum Command {
    /// Generate from a GGUF file in the terminal
    Run(run::RunArguments),
    /// A conversation with a GGUF file in the terminal
    #[cfg(feature = "serve")]
    Chat(chat::ChatArguments),
    /// Logits of given token ids, to a safetensors file
    Logits(logits::LogitsArguments),
    /// How far two files are apart: KL divergence, perplexity, most probable tokens, stated probabilities
    Compare(compare::CompareArguments),
    /// What is in a GGUF file
    Inspect(inspect::InspectArguments),
    /// Observe what a policy's matrices read, for a better quantization
    #[cfg(feature = "train")]
    Importance(importance::ImportanceArguments),
    /// Merge adapters into a checkpoint and write GGUF files
    Quantize(quantize::QuantizeArguments),
    /// How fast a GGUF file runs on this machine, and how much of what the machine could do that is
    Bench(bench::BenchArguments),
    /// How well stated probabilities and outcomes agree; fit a recalibration map
    Calibrate(calibrate::CalibrateArguments),
    /// Serve a GGUF file over HTTP
    Serve(serve::ServeArguments),
    /// The whole mission on the shipped small base policy: three stages, files, gates, a served request, a report
    #[cfg(all(feature = "train", feature = "serve"))]
    Demo(demo::DemoArguments),
    /// Judge a file against the one that it was made from
    #[cfg(feature = "train")]
    Gate(gate::GateArguments),
    /// Train a stage, or all stages of a run file
    #[cfg(feature = "train")]
    Train(train::TrainArguments),
    /// Run a registered study arm by arm, and judge what it predicted
    #[cfg(feature = "train")]
    Study(study::StudyArguments),
    /// Check and preview records to train on
    #[cfg(feature = "train")]
    Data(data::DataArguments),
    /// Look at a user's own environment before a policy plays in it
    #[cfg(feature = "train")]
    Environment(environment::EnvironmentArguments),
    /// Play a file's policy in an environment and measure its foresight
    #[cfg(feature = "train")]
    Eval(evaluate::EvalArguments),
    /// What is in this machine
    Devices,
    /// Render a recorded report again
    Report(report::ReportArguments),
}

impl Globals {
    /// Threads that compute.
    pub(crate) fn threads(&self) -> usize {
        self.threads.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from)
    }

    fn check_device(&self) -> Result<(), Refusal> {
        match self.device {
            Device::Auto | Device::Cpu => Ok(()),
            Device::Cuda | Device::Vulkan | Device::Metal => {
                let name = format!("{:?}", self.device).to_lowercase();
                let refusal = Refusal::new(format!("--device {name}: not in this build"));
                Err(refusal.hint("`--device cpu` runs everywhere; `fsq devices` lists what this build can use"))
            }
        }
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return failure::usage(&error),
    };
    failure::exit(execute(&arguments))
}

fn execute(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let globals = &arguments.globals;
    globals.check_device()?;
    match Cpu::asked_for() {
        // With standard error gone there is nobody left to tell.
        Ok(Some(path)) => drop(writeln!(io::stderr(), "FSQ_CPU: kernels run on {path}")),
        Ok(None) => {}
        Err(error) => return Err(Refusal::new(error.to_string()).into()),
    }
    // The quantizer's pool; the runtime has its own. Fails only where a pool exists, which nothing has made yet.
    rayon::ThreadPoolBuilder::new().num_threads(globals.threads()).build_global()?;
    match &arguments.command {
        Command::Run(it) => run::execute(globals, it),
        #[cfg(feature = "serve")]
        Command::Chat(it) => chat::execute(globals, it),
        Command::Logits(it) => logits::execute(globals, it),
        Command::Compare(it) => compare::execute(globals, it),
        Command::Inspect(it) => inspect::execute(globals, it),
        #[cfg(feature = "train")]
        Command::Importance(it) => importance::execute(globals, it),
        Command::Quantize(it) => quantize::execute(globals, it),
        Command::Bench(it) => bench::execute(globals, it),
        Command::Calibrate(it) => calibrate::execute(globals, it),
        Command::Serve(it) => serve::execute(globals, it),
        #[cfg(all(feature = "train", feature = "serve"))]
        Command::Demo(it) => demo::execute(globals, it),
        #[cfg(feature = "train")]
        Command::Gate(it) => gate::execute(globals, it),
        #[cfg(feature = "train")]
        Command::Train(it) => train::execute(globals, it),
        #[cfg(feature = "train")]
        Command::Study(it) => study::execute(globals, it),
        #[cfg(feature = "train")]
        Command::Data(it) => data::execute(globals, it),
        #[cfg(feature = "train")]
        Command::Environment(it) => environment::execute(globals, it),
        #[cfg(feature = "train")]
        Command::Eval(it) => evaluate::execute(globals, it),
        Command::Devices => devices::execute(globals),
        Command::Report(it) => report::execute(globals, it),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_contradict_themselves_nowhere() {
        Arguments::command().debug_assert();
    }
}
