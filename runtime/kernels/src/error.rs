//! What can go wrong in a kernel or on a device. Wrong shapes between parts of this project are bugs and panic.

/// A failure of a backend, or an operand that does not fit its stated shape.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A slice ends before the last element that its shape and strides name.
    #[error("operand `{operand}`: [{rows}, {columns}] with strides {strides:?} does not fit its {len} elements")]
    OperandTooShort {
        /// Which operand.
        operand: &'static str,
        /// Rows of the stated shape.
        rows: usize,
        /// Columns of the stated shape.
        columns: usize,
        /// Elements between rows and between columns.
        strides: (usize, usize),
        /// Elements in the slice.
        len: usize,
    },
    /// A weight whose bytes are not what its format and shape say, or that the backend does not multiply.
    #[error("tensor `{name}`: expected {expected}")]
    Weight {
        /// The tensor.
        name: String,
        /// What would fit, and what was found.
        expected: String,
    },
    /// A wish for instructions that the machine does not have, or that nobody has heard of.
    #[error("{variable}: expected one of {expected}, found `{found}`")]
    Path {
        /// The environment variable that holds the wish.
        variable: &'static str,
        /// What the machine has.
        expected: String,
        /// What was wished for.
        found: String,
    },
    /// Memory that the device does not have.
    #[error("out of memory: {bytes} bytes")]
    OutOfMemory {
        /// How much was asked for.
        bytes: usize,
    },
    /// The device failed.
    #[error("device: {reason}")]
    Device {
        /// In its driver's words.
        reason: String,
    },
}
