//! Weight matrices as the CPU multiplies them: 16 rows side by side, so that one load serves 16 results.

pub(crate) mod blocks;
pub(crate) mod codes;
pub(crate) mod floats;
pub(crate) mod supers;
