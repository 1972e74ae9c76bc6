//! Where a file came from, as metadata that other loaders ignore.

use fsq_checkpoint::{Adapter, Checkpoint, TensorName, tensor_names};
use fsq_gguf::Metadata;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::digest::{Parts, hex};
use crate::{Importance, QuantizeError};

/// How adapters reach the file that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deploy {
    /// Merged into the weights before they are encoded.
    Merged,
    /// Trained on, and served beside, the encoded weights.
    Native,
    /// Merged into weights that were trained on the grid of the format.
    Qat,
}

impl Deploy {
    /// The word in the metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::Merged => "merged",
            Self::Native => "native",
            Self::Qat => "qat",
        }
    }
}

/// What a file was made of. Digests, not paths: a file says nothing about the machine that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// Name and version of the tool, such as `fsq 0.1.0`.
    pub tool: String,
    /// The checkpoint's folder, without what leads to it.
    pub base_name: String,
    /// SHA-256 over the names and shapes of the base's tensors and the SHA-256 of the stored bytes of each.
    pub base_sha256: [u8; 32],
    /// SHA-256 over each adapter's scale and matrices.
    pub adapters_sha256: Vec<[u8; 32]>,
    /// SHA-256 of the data that the adapters were trained on, if known.
    pub data_sha256: Option<[u8; 32]>,
    /// SHA-256 over the importance, if any was used.
    pub importance_sha256: Option<[u8; 32]>,
    /// How the adapters reach the file.
    pub deploy: Deploy,
}

impl Provenance {
    /// Digests what is about to be merged and encoded. Reads every tensor once.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn of(
        tool: &str,
        checkpoint: &Checkpoint,
        adapters: &[Adapter],
        importance: Option<&Importance>,
    ) -> Result<Self, QuantizeError> {
        let tensors = tensor_names(&checkpoint.dimensions);
        let digests: Vec<_> = tensors.par_iter().map(|it| stored_sha256(checkpoint, it)).collect();
        let mut base = Parts::new();
        for (tensor, digest) in tensors.iter().zip(digests) {
            base.add(tensor.hf.as_bytes());
            for size in &tensor.shape {
                base.add(&(*size as u64).to_le_bytes());
            }
            base.add(&digest?);
        }
        Ok(Self {
            tool: tool.into(),
            base_name: base_name(checkpoint),
            base_sha256: base.finish(),
            adapters_sha256: adapters.iter().map(adapter_sha256).collect(),
            data_sha256: None,
            importance_sha256: importance.map(Importance::sha256),
            deploy: Deploy::Merged,
        })
    }

    /// Sets the keys under `fsq.provenance` and `fsq.deploy`.
    pub fn write(&self, metadata: &mut Metadata) {
        metadata.insert("fsq.provenance.tool", self.tool.as_str());
        metadata.insert("fsq.provenance.base.name", self.base_name.as_str());
        metadata.insert("fsq.provenance.base.sha256", hex(&self.base_sha256));
        let adapters: Vec<String> = self.adapters_sha256.iter().map(hex).collect();
        metadata.insert("fsq.provenance.adapters.sha256", adapters);
        for (key, digest) in [("data", &self.data_sha256), ("importance", &self.importance_sha256)] {
            if let Some(digest) = digest {
                metadata.insert(format!("fsq.provenance.{key}.sha256"), hex(digest));
            }
        }
        metadata.insert("fsq.deploy", self.deploy.name());
    }
}

fn stored_sha256(checkpoint: &Checkpoint, tensor: &TensorName) -> Result<[u8; 32], QuantizeError> {
    let mut digest = Sha256::new();
    checkpoint.for_each_piece(&tensor.hf, &mut |piece| digest.update(piece))?;
    Ok(digest.finalize().into())
}

/// The name of the checkpoint's folder.
pub(crate) fn base_name(checkpoint: &Checkpoint) -> String {
    let name = checkpoint.path.file_name().or(checkpoint.path.components().next_back().map(|it| it.as_os_str()));
    name.map_or_else(|| "policy".into(), |it| it.to_string_lossy().into_owned())
}

/// SHA-256 over an adapter's scale, modules and matrices: the same of a PEFT folder and of the GGUF file made from it.
pub fn adapter_sha256(adapter: &Adapter) -> [u8; 32] {
    let mut parts = Parts::new();
    parts.add_floats(&[adapter.scale()]);
    for (module, pair) in &adapter.pairs {
        parts.add(module.as_bytes());
        parts.add(&(pair.rank as u64).to_le_bytes());
        parts.add_floats(&pair.a);
        parts.add_floats(&pair.b);
    }
    parts.finish()
}
