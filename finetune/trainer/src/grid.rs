//! A quantized file whose matrices are trained over, as they lie in it. Knows nothing of gradients, and of the file no
//! more than its tensors and where it came from.
//!
//! An adapter trained over these weights makes up for what rounding did to them (QLoRA, arXiv 2305.14314), and is
//! served beside the same file. Norms, biases, tokenizer and sizes are the checkpoint's that the file was made of.

use std::collections::BTreeMap;
use std::path::Path;

use fsq_checkpoint::architecture::unpermute_rotary_rows;
use fsq_checkpoint::{Checkpoint, TensorName, tensor_names};
use fsq_gguf::{Gguf, TensorView};
use fsq_quantizer::Provenance;

use crate::TrainError;
use crate::autograd::{Coded, Weights};

const BASE_DIGEST: &str = "fsq.provenance.base.sha256";
const ADAPTERS: &str = "fsq.provenance.adapters.sha256";

/// A file that holds every matrix of a checkpoint.
pub struct Grid {
    file: Gguf,
    /// By the checkpoint's names.
    names: BTreeMap<String, TensorName>,
}

impl Grid {
    /// Opens a file and proves that it holds the checkpoint's matrices, and theirs alone where it says what it was made
    /// of.
    ///
    /// # Errors
    /// When the file is unsound, of another checkpoint, or has adapters merged into it.
    pub fn open(path: &Path, checkpoint: &Checkpoint) -> Result<Self, TrainError> {
        let names = tensor_names(&checkpoint.dimensions).into_iter().map(|it| (it.hf.clone(), it)).collect();
        let grid = Self { file: Gguf::open(path)?, names };
        for name in grid.names.values().filter(|it| it.shape.len() == 2) {
            grid.view(name)?;
        }
        grid.check_origin(checkpoint)?;
        Ok(grid)
    }

    /// SHA-256 of its tensors.
    #[must_use]
    pub fn data_sha256(&self) -> [u8; 32] {
        self.file.data_sha256()
    }

    /// Matrices by the checkpoint's names, one below another, their rows in the checkpoint's order.
    pub(crate) fn matrices(&self, names: &[String]) -> Result<Weights, TrainError> {
        let coded = names.iter().map(|it| {
            let name = self.names.get(it).ok_or_else(|| self.fault(it, "a tensor of the checkpoint", "none"))?;
            let view = self.view(name)?;
            let row_bytes = view.bytes.len() / view.rows();
            // A row is whole blocks, so rows can be put in order without decoding them.
            let bytes = match name.permuted_heads {
                Some(heads) => unpermute_rotary_rows(view.bytes, heads, row_bytes),
                None => view.bytes.to_vec(),
            };
            self.file.release(view.name);
            Ok(Coded { format: view.format, columns: view.cols(), row_bytes, bytes })
        });
        Ok(Weights::Coded(coded.collect::<Result<_, TrainError>>()?))
    }

    /// A matrix as the file has it.
    fn view(&self, name: &TensorName) -> Result<TensorView<'_>, TrainError> {
        let expected = || format!("a matrix of {} x {}", name.shape[0], name.shape[1]);
        let view = self.file.tensor(&name.gguf).ok_or_else(|| self.fault(&name.gguf, &expected(), "no such tensor"))?;
        if [view.rows(), view.cols()] != name.shape[..] {
            return Err(self.fault(&name.gguf, &expected(), &format!("{} x {}", view.rows(), view.cols())));
        }
        Ok(view)
    }

    fn check_origin(&self, checkpoint: &Checkpoint) -> Result<(), TrainError> {
        let metadata = self.file.metadata();
        let n_adapters = metadata.str_array(ADAPTERS).map_or(0, <[String]>::len);
        if n_adapters > 0 {
            return Err(self.fault(ADAPTERS, "the checkpoint alone", &format!("{n_adapters} adapters merged into it")));
        }
        // Files of other programs do not say.
        let Some(found) = metadata.str(BASE_DIGEST) else { return Ok(()) };
        let digest = Provenance::of("", checkpoint, &[], None)?.base_sha256;
        let expected: String = digest.iter().map(|it| format!("{it:02x}")).collect();
        if found != expected {
            let expected = format!("{expected}, of {}", checkpoint.path.display());
            return Err(self.fault(BASE_DIGEST, &expected, found));
        }
        Ok(())
    }

    fn fault(&self, field: &str, expected: &str, found: &str) -> TrainError {
        TrainError::Grid {
            path: self.file.path().into(),
            field: field.into(),
            expected: expected.into(),
            found: found.into(),
        }
    }
}
