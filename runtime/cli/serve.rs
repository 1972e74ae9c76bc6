//! `fsq serve`: a GGUF file over HTTP. What the file says of itself is read here; the server knows no files.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

/// Arguments of `fsq serve`.
#[derive(Args)]
pub(crate) struct ServeArguments {
    /// A GGUF file
    file: PathBuf,
    /// Address and port to listen on; port 0 takes any free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Keep predictions and outcomes in this file, over restarts
    #[arg(long, value_name = "FILE")]
    outcomes: Option<PathBuf>,
    /// Tokens of prompt and answer together at most [default: what the policy was trained for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    context: Option<u32>,
    /// Sequences of that length that fit beside each other
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    sequences: u16,
    /// How keys and values are stored; gates judge a file with f16
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    kv: crate::policy::Kv,
}

#[cfg(all(feature = "serve", feature = "train"))]
pub(crate) use enabled::start;
#[cfg(feature = "serve")]
pub(crate) use enabled::{execute, policy};

/// Says how to get a build that serves.
#[cfg(not(feature = "serve"))]
pub(crate) fn execute(
    _globals: &crate::Globals,
    arguments: &ServeArguments,
) -> anyhow::Result<crate::failure::Outcome> {
    let ServeArguments { file, listen, .. } = arguments;
    let message = format!("serve {} on {listen}: serving is not in this build", file.display());
    let refusal = crate::failure::Refusal::new(message);
    Err(refusal.hint("build with `cargo build --release --features serve`").into())
}

#[cfg(feature = "serve")]
mod enabled {
    //! The command in builds that serve.

    use std::collections::BTreeMap;
    #[cfg(feature = "train")]
    use std::path::Path;

    use anyhow::Context;
    use fsq_calibrate::gates::Confidence;
    use fsq_calibrate::recalibration::{RecalibrationMap, RecalibrationMaps};
    use fsq_gguf::{Gguf, Metadata};
    use fsq_kernels::Cpu;
    use fsq_model::{ChatTemplate, Decoder, DecoderOptions, TokenId, Tokenizer};
    use fsq_server::{GateFacts, Options, Policy, PolicyFacts, Server};

    use super::ServeArguments;
    use crate::failure::{Outcome, Refusal};
    use crate::output::{self, bytes_text, hex};
    use crate::policy::Kv;
    use crate::{Globals, identity, policy};

    /// Sequences of full length that fit beside each other, for callers that do not say.
    #[cfg(feature = "train")]
    const SEQUENCES: usize = 16;

    /// Runs the command: serves until the process is asked to end.
    pub(crate) fn execute(globals: &Globals, arguments: &ServeArguments) -> anyhow::Result<Outcome> {
        let gguf = policy::open(&arguments.file)?;
        let context = arguments.context.map_or(usize::MAX, |it| it as usize);
        let policy = policy(globals.threads(), &gguf, context, usize::from(arguments.sequences), arguments.kv)?;
        drop(gguf);
        let line = described(&policy);
        let mut options = Options::loopback(arguments.listen.port());
        options.address = arguments.listen;
        options.outcomes.clone_from(&arguments.outcomes);
        let server = Server::start(policy, options)?;
        let address = server.address();
        if globals.json {
            // One line, so that a script can read it while the server runs on.
            output::print(&format!("{}\n", serde_json::json!({"url": format!("http://{address}")})))?;
        } else {
            output::print(&format!("{line}\nlistening on http://{address}, Ctrl-C stops\n"))?;
        }
        server.run_until_signal()?;
        Ok(Outcome::Done)
    }

    /// Serves a file on this machine only, with outcomes in memory, until the server is stopped; port 0 takes any
    /// free one.
    #[cfg(feature = "train")]
    pub(crate) fn start(file: &Path, threads: usize, port: u16) -> anyhow::Result<Server> {
        let gguf = policy::open(file)?;
        Ok(Server::start(policy(threads, &gguf, usize::MAX, SEQUENCES, Kv::F16)?, Options::loopback(port))?)
    }

    /// A policy as the server takes it, with everything that its file says of it.
    pub(crate) fn policy(
        threads: usize,
        gguf: &Gguf,
        context_tokens: usize,
        max_sequences: usize,
        kv: Kv,
    ) -> anyhow::Result<Policy<Decoder<Cpu>>> {
        let file = || gguf.path().display().to_string();
        identity::check(gguf)?;
        // Requests run without one.
        identity::check_adapter(gguf, None)?;
        let tokenizer = policy::tokenizer(gguf)?;
        let options = DecoderOptions { threads, context_tokens, kv: kv.into(), max_sequences };
        let fields = gguf.metadata();
        let source = fields.str("tokenizer.chat_template");
        let source = source.ok_or_else(|| {
            let refusal = Refusal::new(format!("{}: metadata `tokenizer.chat_template` is absent", file()));
            refusal.hint("put `chat_template.jinja` into the checkpoint and quantize it again")
        })?;
        let template =
            ChatTemplate::new(source, &text_of(&tokenizer, tokenizer.bos()), &text_of(&tokenizer, tokenizer.eos()));
        let pairs = fields.iter().filter_map(|(key, _)| Some((key, fields.str(key)?)));
        Ok(Policy {
            decoder: Decoder::load(gguf, options).with_context(file)?,
            template: template.with_context(file)?,
            tokenizer,
            recalibration: RecalibrationMaps::from_pairs(pairs)
                .with_context(file)?
                .unwrap_or_else(|| RecalibrationMaps::overall(RecalibrationMap::identity())),
            facts: facts(gguf, fields)?,
        })
    }

    fn text_of(tokenizer: &Tokenizer, token: Option<TokenId>) -> String {
        let bytes = token.and_then(|it| tokenizer.token_bytes(it)).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    }

    fn facts(gguf: &Gguf, fields: &Metadata) -> anyhow::Result<PolicyFacts> {
        let confidence = confidence(gguf, fields, "fsq.gate.confidence")?;
        let mut confidence_in = BTreeMap::new();
        for environment in fields.str("fsq.gate.environments").unwrap_or_default().split(", ") {
            if let Some(found) = self::confidence(gguf, fields, &format!("fsq.gate.{environment}.confidence"))? {
                confidence_in.insert(environment.to_owned(), found);
            }
        }
        let gate = fields.str("fsq.gate.verdict").zip(fields.str("fsq.gate.profile"));
        let stem = || gguf.path().file_stem().map(|it| it.to_string_lossy().into_owned());
        Ok(PolicyFacts {
            name: fields.str("general.name").map(str::to_owned).or_else(stem).unwrap_or_else(|| "policy".into()),
            digest: hex(&gguf.data_sha256()),
            confidence,
            confidence_in,
            gate: gate.map(|(verdict, profile)| GateFacts { verdict: verdict.into(), profile: profile.into() }),
        })
    }

    fn confidence(gguf: &Gguf, fields: &Metadata, key: &str) -> anyhow::Result<Option<Confidence>> {
        match fields.str(key) {
            None => Ok(None),
            Some("usable") => Ok(Some(Confidence::Usable)),
            Some("unusable") => Ok(Some(Confidence::Unusable)),
            Some(found) => {
                let file = gguf.path().display();
                let message = format!("{file}: metadata `{key}`: expected usable or unusable, found {found:?}");
                Err(Refusal::new(message).into())
            }
        }
    }

    /// What is served, in a line.
    fn described(policy: &Policy<Decoder<Cpu>>) -> String {
        let facts = &policy.facts;
        let gate = facts.gate.as_ref().map_or_else(
            || "never judged by gates".to_owned(),
            |it| format!("gates of profile {}: {}", it.profile, it.verdict),
        );
        let map = policy.recalibration.of(None).family().name();
        let path = policy.decoder.backend().path();
        let (kv, kv_bytes) = (policy.decoder.options().kv.name(), bytes_text(policy.decoder.kv_bytes()));
        let name = &facts.name;
        format!("{name}: {gate}; recalibration map {map}; on the processor ({path}); keys and values {kv}, {kv_bytes}")
    }
}
