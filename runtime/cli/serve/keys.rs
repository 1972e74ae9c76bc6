//! `fsq serve keys`: makes, lists and revokes the keys that clients of a server present.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use fsq_server::{KeyFile, Scope};
use serde_json::json;

use crate::Globals;
use crate::failure::{Outcome, Refusal};
use crate::output;

/// What can be done with keys. A running server reads its file again on SIGHUP.
#[derive(Subcommand)]
pub(crate) enum KeysCommand {
    /// Make a key and print it: the file holds only its hash, so it cannot be shown again
    Add {
        /// The file of keys, made when it is not there
        file: PathBuf,
        /// What logs and lists call the key
        #[arg(long)]
        name: String,
        /// What the key opens; give it more than once for more
        #[arg(long = "scope", value_enum, required = true)]
        scopes: Vec<ScopeName>,
        /// Requests in a minute at most
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        requests_per_minute: Option<u32>,
    },
    /// List keys by name
    List {
        /// The file of keys
        file: PathBuf,
    },
    /// Take a key out
    Revoke {
        /// The file of keys
        file: PathBuf,
        /// The key's name
        #[arg(long)]
        name: String,
    },
}

/// Scopes as arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScopeName {
    /// Chat, completions, foresight, tokens
    Infer,
    /// Tell outcomes and read their summary
    Outcomes,
    /// Read metrics
    Metrics,
    /// Everything on the listener for administration
    Admin,
}

impl From<ScopeName> for Scope {
    fn from(name: ScopeName) -> Self {
        match name {
            ScopeName::Infer => Scope::Infer,
            ScopeName::Outcomes => Scope::Outcomes,
            ScopeName::Metrics => Scope::Metrics,
            ScopeName::Admin => Scope::Admin,
        }
    }
}

/// Runs the command.
pub(crate) fn execute(globals: &Globals, command: &KeysCommand) -> anyhow::Result<Outcome> {
    match command {
        KeysCommand::Add { file, name, scopes, requests_per_minute } => {
            let mut keys = KeyFile::open_or_new(file)?;
            let key = keys.add(name, scopes.iter().map(|it| Scope::from(*it)).collect(), *requests_per_minute)?;
            keys.save()?;
            if globals.json {
                output::print_json(&json!({"name": name, "key": key}))?;
            } else {
                // With standard error gone there is nobody left to tell.
                let _ = writeln!(io::stderr(), "key `{name}`, which is not shown again:");
                output::print(&format!("{key}\n"))?;
            }
        }
        KeysCommand::List { file } => list(globals, &KeyFile::open(file)?)?,
        KeysCommand::Revoke { file, name } => {
            let mut keys = KeyFile::open(file)?;
            if !keys.revoke(name) {
                let refusal = Refusal::new(format!("{}: no key `{name}`", file.display()));
                return Err(refusal.hint("`fsq serve keys list FILE` lists them").into());
            }
            keys.save()?;
            if globals.json {
                output::print_json(&json!({"name": name, "revoked": true}))?;
            } else {
                output::print(&format!("revoked `{name}`; a running server follows on SIGHUP\n"))?;
            }
        }
    }
    Ok(Outcome::Done)
}

fn list(globals: &Globals, file: &KeyFile) -> anyhow::Result<()> {
    let scopes = |key: &fsq_server::Key| key.scopes.iter().map(|it| it.name()).collect::<Vec<_>>();
    if globals.json {
        let row = |it: &fsq_server::Key| {
            json!({
                "name": it.name, "scopes": scopes(it), "created_s": it.created_s,
                "requests_per_minute": it.requests_per_minute,
            })
        };
        return output::print_json(&file.keys().iter().map(row).collect::<Vec<_>>());
    }
    for key in file.keys() {
        let limit = key.requests_per_minute.map_or_else(String::new, |it| format!(", {it} requests a minute"));
        output::print(&format!("{}: {}{limit}\n", key.name, scopes(key).join(", ")))?;
    }
    Ok(())
}
