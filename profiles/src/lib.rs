//! Shipped profiles, and the types they parse into. Plain numbers: knows nothing of what judges by them.

#![forbid(unsafe_code)]

mod gates;

pub use gates::{GATE_PROFILES, GateProfile};

/// Why a profile could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// No shipped profile has this name.
    #[error("gate profile `{name}`: expected one of {expected}, found no such profile")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        expected: String,
    },
    /// The text is not a profile: not TOML, a field missing, unknown or of the wrong type.
    #[error("{origin}: {source}")]
    Malformed {
        /// Where the text comes from: a path, or the name of a shipped profile.
        origin: String,
        /// What is wrong, with line and field.
        #[source]
        source: Box<toml::de::Error>,
    },
}
