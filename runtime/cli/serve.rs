//! `fsq serve`: a GGUF file over HTTP. What the file says of itself is read here; the server knows no files.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

#[cfg(feature = "serve")]
mod keys;

/// Arguments of `fsq serve`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct ServeArguments {
    #[cfg(feature = "serve")]
    #[command(subcommand)]
    command: Option<ServeCommand>,
    /// A GGUF file
    #[arg(required = true)]
    file: Option<PathBuf>,
    /// Address and port to listen on; port 0 takes any free one. Beyond this machine only with `--keys`
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Serve only clients with a key of this file, which `fsq serve keys` makes
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Speak TLS with this certificate, in PEM, and those between it and its authority
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Serve only clients with a certificate that one of these authorities, in PEM, has signed
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Listen for administration on an address of its own, on this machine: keys, metrics, an orderly stop
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    /// Keep an audit log in this file: who asked for what and when, each line with the hash of the one before
    #[arg(long, value_name = "FILE")]
    audit: Option<PathBuf>,
    /// Write each request as a line of JSON to standard error, without what was asked or answered
    #[arg(long)]
    log_requests: bool,
    /// Show a web page at `/`
    #[arg(long)]
    page: bool,
    /// Keep predictions and outcomes in this file, over restarts
    #[arg(long, value_name = "FILE")]
    outcomes: Option<PathBuf>,
    /// Tokens of prompt and answer together at most [default: what the policy was trained for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    context: Option<u32>,
    /// Sequences of that length that fit beside each other
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    sequences: u16,
    /// Rows up to which a forward pass is filled with tokens that may come next, looked up in the text; 0 for none.
    /// Answers are the same with and without; what repeats itself comes faster
    #[arg(long, value_name = "ROWS", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=256))]
    draft_rows: u16,
    /// How keys and values are stored; gates judge a file with f16
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    kv: crate::policy::Kv,
}

/// What else there is beside serving.
#[cfg(feature = "serve")]
#[derive(clap::Subcommand)]
enum ServeCommand {
    /// Make, list and revoke the keys that clients present
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Check that no line of an audit log was changed, taken out or put in
    VerifyAudit {
        /// The log
        file: PathBuf,
    },
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
    let file = file.as_deref().map_or_else(String::new, |it| it.display().to_string());
    let message = format!("serve {file} on {listen}: serving is not in this build");
    let refusal = crate::failure::Refusal::new(message);
    Err(refusal.hint("build with `cargo build --release --features serve`").into())
}

#[cfg(feature = "serve")]
mod enabled {
    //! The command in builds that serve.

    use std::collections::BTreeMap;
    use std::io::{self, Write};
    use std::path::Path;

    use anyhow::Context;
    use fsq_calibrate::gates::Confidence;
    use fsq_calibrate::recalibration::{RecalibrationMap, RecalibrationMaps};
    use fsq_calibrate::stored::StoredThreshold;
    use fsq_gguf::{Gguf, Metadata};
    use fsq_kernels::Cpu;
    use fsq_model::{ChatTemplate, Decoder, DecoderOptions, TokenId, Tokenizer};
    use fsq_server::{AuditSummary, GateFacts, Options, Policy, PolicyFacts, Server, TlsFiles};

    use super::{ServeArguments, ServeCommand};
    use crate::failure::{Outcome, Refusal};
    use crate::output::{self, bytes_text, hex};
    use crate::policy::Kv;
    use crate::{Globals, identity, policy};

    /// Sequences of full length that fit beside each other, for callers that do not say.
    #[cfg(feature = "train")]
    const SEQUENCES: usize = 16;

    /// Runs the command: serves until the process is asked to end.
    pub(crate) fn execute(globals: &Globals, arguments: &ServeArguments) -> anyhow::Result<Outcome> {
        match &arguments.command {
            Some(ServeCommand::Keys(command)) => return super::keys::execute(globals, command),
            Some(ServeCommand::VerifyAudit { file }) => return verify_audit(globals, file),
            None => {}
        }
        let gguf = policy::open(arguments.file.as_deref().unwrap_or(Path::new("")))?;
        let context = arguments.context.map_or(usize::MAX, |it| it as usize);
        let policy = policy(globals.threads(), &gguf, context, usize::from(arguments.sequences), arguments.kv)?;
        drop(gguf);
        let line = described(&policy);
        let mut options = Options::loopback(arguments.listen.port());
        options.address = arguments.listen;
        options.outcomes.clone_from(&arguments.outcomes);
        options.keys.clone_from(&arguments.keys);
        options.audit.clone_from(&arguments.audit);
        options.logs_requests = arguments.log_requests;
        options.has_page = arguments.page;
        options.draft_rows_max = usize::from(arguments.draft_rows);
        options.admin = arguments.admin;
        options.tls = tls_files(arguments);
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        let server = Server::start(policy, options)?;
        let address = server.address();
        if globals.json {
            // One line, so that a script can read it while the server runs on.
            let admin = server.admin_address().map(|it| format!("http://{it}"));
            let urls = serde_json::json!({"url": format!("{scheme}://{address}"), "admin_url": admin});
            output::print(&format!("{urls}\n"))?;
        } else {
            let admin = server.admin_address().map(|it| format!("administration on http://{it}\n"));
            let admin = admin.unwrap_or_default();
            output::print(&format!("{line}\n{admin}listening on {scheme}://{address}, Ctrl-C stops\n"))?;
        }
        server.run_until_signal(|read| {
            let line = match read {
                Ok(line) => line,
                Err(error) => format!("everything stays as it was: {error}"),
            };
            // With standard error gone there is nobody left to tell.
            let _ = writeln!(io::stderr(), "{line}");
        })?;
        Ok(Outcome::Done)
    }

    fn tls_files(arguments: &ServeArguments) -> Option<TlsFiles> {
        let (certificate, key) = (arguments.tls_cert.clone()?, arguments.tls_key.clone()?);
        Some(TlsFiles { certificate, key, client_authority: arguments.tls_client_ca.clone() })
    }

    fn verify_audit(globals: &Globals, file: &Path) -> anyhow::Result<Outcome> {
        let AuditSummary { n_lines, last, n_torn_bytes } = fsq_server::verify_audit(file)?;
        if globals.json {
            output::print_json(&serde_json::json!({"n_lines": n_lines, "last": last, "n_torn_bytes": n_torn_bytes}))?;
        } else {
            let torn =
                if n_torn_bytes > 0 { format!(", then {n_torn_bytes} bytes of a line cut off") } else { String::new() };
            output::print(&format!("{n_lines} lines hold together{torn}; the last has the hash {last}\n"))?;
        }
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
        let file = || gguf.path().display().to_string();
        let pairs = fields.iter().filter_map(|(key, _)| Some((key, fields.str(key)?)));
        let gate = fields.str("fsq.gate.verdict").zip(fields.str("fsq.gate.profile"));
        let stem = || gguf.path().file_stem().map(|it| it.to_string_lossy().into_owned());
        Ok(PolicyFacts {
            name: fields.str("general.name").map(str::to_owned).or_else(stem).unwrap_or_else(|| "policy".into()),
            digest: hex(&gguf.data_sha256()),
            confidence,
            confidence_in,
            gate: gate.map(|(verdict, profile)| GateFacts { verdict: verdict.into(), profile: profile.into() }),
            thresholds: StoredThreshold::all_from_pairs(pairs).with_context(file)?,
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
