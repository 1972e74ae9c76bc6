//! `fsq devices`: what is in this machine, and what of it this build can use.

use anyhow::Context;
use fsq_kernels::Cpu;
use serde::Serialize;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use crate::failure::Outcome;
use crate::output::bytes_text;
use crate::{Globals, output};

#[derive(Serialize)]
struct Document {
    processor: Processor,
    memory: Memory,
    system: String,
    /// Devices other than the processor that this build can use: none yet.
    accelerators: Vec<String>,
}

#[derive(Serialize)]
struct Processor {
    name: String,
    architecture: &'static str,
    cores: Option<usize>,
    /// Threads that this process may run at once.
    threads: usize,
    /// What the processor has of what kernels could use.
    instructions: Vec<&'static str>,
    /// What the kernels of this build run on here.
    path: String,
}

#[derive(Serialize)]
struct Memory {
    total_bytes: u64,
    available_bytes: u64,
    /// A container's limit, where it is below the total.
    limit_bytes: Option<u64>,
}

/// Runs the command.
pub(crate) fn execute(globals: &Globals) -> anyhow::Result<Outcome> {
    let document = document(globals)?;
    if globals.json {
        output::print_json(&document)?;
    } else {
        output::print(&text(&document))?;
    }
    Ok(Outcome::Done)
}

/// The processor's name, its threads and the machine's memory, for reports.
#[cfg_attr(not(feature = "train"), expect(dead_code, reason = "only reports of runs need it"))]
pub(crate) fn summary(globals: &Globals) -> anyhow::Result<(String, usize, u64)> {
    let Document { processor, memory, .. } = document(globals)?;
    Ok((processor.name, processor.threads, memory.limit_bytes.unwrap_or(memory.total_bytes)))
}

fn document(globals: &Globals) -> anyhow::Result<Document> {
    let cpu = CpuRefreshKind::nothing();
    let kind = RefreshKind::nothing().with_cpu(cpu).with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(kind).context("this machine")?;
    let total_bytes = system.total_memory();
    let name = system.cpus().first().map(|it| it.brand().trim().to_owned()).filter(|it| !it.is_empty());
    Ok(Document {
        processor: Processor {
            name: name.unwrap_or_else(|| "unknown".into()),
            architecture: std::env::consts::ARCH,
            cores: System::physical_core_count().ok(),
            threads: globals.threads(),
            instructions: instructions(),
            path: Cpu::new(1).path(),
        },
        memory: Memory {
            total_bytes,
            available_bytes: system.available_memory(),
            limit_bytes: system.cgroup_limits().map(|it| it.total_memory).filter(|it| *it < total_bytes),
        },
        system: System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.into()),
        accelerators: Vec::new(),
    })
}

#[cfg(target_arch = "x86_64")]
fn instructions() -> Vec<&'static str> {
    let found = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx-vnni", is_x86_feature_detected!("avxvnni")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512-vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512-bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    found.into_iter().filter(|it| it.1).map(|it| it.0).collect()
}

#[cfg(target_arch = "aarch64")]
fn instructions() -> Vec<&'static str> {
    let found = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
        ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
        ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
    ];
    found.into_iter().filter(|it| it.1).map(|it| it.0).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn instructions() -> Vec<&'static str> {
    Vec::new()
}

fn text(document: &Document) -> String {
    let Document { processor, memory, system, .. } = document;
    let cores = processor.cores.map_or_else(String::new, |it| format!("{it} cores, "));
    let limit = memory.limit_bytes.map_or_else(String::new, |it| format!(", limited to {} here", bytes_text(it)));
    let (total, available) = (bytes_text(memory.total_bytes), bytes_text(memory.available_bytes));
    let instructions =
        if processor.instructions.is_empty() { "none that matter".into() } else { processor.instructions.join(" ") };
    [
        ("processor", format!("{} ({})", processor.name, processor.architecture)),
        ("threads", format!("{cores}{} threads used", processor.threads)),
        ("instructions", format!("{instructions}; kernels run on {}", processor.path)),
        ("memory", format!("{total}, {available} available{limit}")),
        ("system", system.clone()),
        ("devices", "cpu; no kernels for cuda, vulkan or metal in this build".into()),
    ]
    .map(|(name, text)| format!("{name:<13} {text}\n"))
    .concat()
}
