//! LoRA adapters in PEFT layout: `adapter_config.json` and `adapter_model.safetensors`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::checkpoint::{pretty, read_json, replace_folder, serialized, write_file};
use crate::safetensors_file::SafetensorsFile;
use crate::{CheckpointError, NamedTensor, StoredType};

/// Largest rank that is believed; above it the low-rank form costs more than the matrix of any policy we serve.
const RANK_MAX: usize = 4096;
/// What PEFT puts before a module's path.
const PREFIX: &str = "base_model.model.";

/// The two matrices of one adapted module: the update is `scale · B · A`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraPair {
    /// `[rank, in]`.
    pub a: Vec<f32>,
    /// `[out, rank]`.
    pub b: Vec<f32>,
    /// Rows of `a`.
    pub rank: usize,
    /// Columns of `a`.
    pub inputs: usize,
    /// Rows of `b`.
    pub outputs: usize,
}

/// An adapter: low-rank updates by the path of the module that they change.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// Rank of every pair.
    pub rank: usize,
    /// The numerator of the scale.
    pub alpha: f32,
    /// Scale by the root of the rank instead of the rank (rsLoRA).
    pub rslora: bool,
    /// By Hugging Face module path, such as `model.layers.0.self_attn.q_proj`.
    pub pairs: BTreeMap<String, LoraPair>,
}

impl Adapter {
    /// `alpha / rank`, or `alpha / √rank` for rsLoRA.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rank is at most RANK_MAX")]
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f32;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// Several adapters as one with the same update, `Σ scale · B · A`: their ranks side by side. `None` of none.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "ranks have four digits each")]
    pub fn joined(adapters: &[Self]) -> Option<Self> {
        if let [] | [_] = adapters {
            return adapters.first().cloned();
        }
        let rank = adapters.iter().map(|it| it.rank).sum();
        let mut pairs: BTreeMap<String, LoraPair> = BTreeMap::new();
        let mut start = 0;
        for adapter in adapters {
            for (module, pair) in &adapter.pairs {
                let (inputs, outputs) = (pair.inputs, pair.outputs);
                let whole = pairs.entry(module.clone()).or_insert_with(|| LoraPair {
                    a: vec![0.0; rank * inputs],
                    b: vec![0.0; outputs * rank],
                    rank,
                    inputs,
                    outputs,
                });
                whole.a[start * inputs..(start + pair.rank) * inputs].copy_from_slice(&pair.a);
                for (row, own) in whole.b.chunks_exact_mut(rank).zip(pair.b.chunks_exact(pair.rank)) {
                    let scaled = own.iter().map(|it| it * adapter.scale());
                    row[start..start + pair.rank].iter_mut().zip(scaled).for_each(|(to, it)| *to = it);
                }
            }
            start += adapter.rank;
        }
        Some(Self { rank, alpha: rank as f32, rslora: false, pairs })
    }

    /// Reads an adapter folder.
    ///
    /// # Errors
    /// The file, field or tensor that is absent, damaged or of another shape than the rank says.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let config_path = path.join("adapter_config.json");
        let config = read_json(&config_path)?;
        check_kind(&config_path, &config)?;
        let (rank, alpha) = read_scale(&config_path, &config)?;
        let file = SafetensorsFile::open(&path.join("adapter_model.safetensors"))?;
        let mut pairs = BTreeMap::new();
        for name in file.names() {
            let Some(module) = name.strip_prefix(PREFIX).and_then(|it| it.strip_suffix(".lora_A.weight")) else {
                if name.ends_with(".lora_B.weight") {
                    continue;
                }
                let expected = "pairs of lora_A and lora_B only";
                return Err(CheckpointError::field(file.path(), "tensors", expected, name));
            };
            pairs.insert(module.to_string(), read_pair(&file, module, rank)?);
        }
        let rslora = config.get("use_rslora").and_then(Value::as_bool).unwrap_or(false);
        Ok(Self { rank, alpha, rslora, pairs })
    }

    /// Writes an adapter folder that PEFT loads: into a temporary folder beside it, then one rename.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, path: &Path, base: &str) -> Result<(), CheckpointError> {
        let parent = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent).map_err(|it| CheckpointError::io(parent, it))?;
        let draft = tempfile::Builder::new()
            .prefix(".adapter-")
            .tempdir_in(parent)
            .map_err(|it| CheckpointError::io(parent, it))?;
        write_file(&draft.path().join("adapter_config.json"), pretty(&self.config(base)).as_bytes())?;
        let mut tensors = Vec::new();
        for (module, pair) in &self.pairs {
            let named = |side: &str, shape: [usize; 2], values| NamedTensor {
                name: format!("{PREFIX}{module}.lora_{side}.weight"),
                shape: shape.to_vec(),
                values: Cow::Borrowed(values),
            };
            tensors.push(named("A", [pair.rank, pair.inputs], &pair.a));
            tensors.push(named("B", [pair.outputs, pair.rank], &pair.b));
        }
        write_file(&draft.path().join("adapter_model.safetensors"), &serialized(path, StoredType::F32, &tensors)?)?;
        replace_folder(draft, path)
    }

    fn config(&self, base: &str) -> Value {
        let mut modules: Vec<&str> = self.pairs.keys().filter_map(|it| it.rsplit('.').next()).collect();
        modules.sort_unstable();
        modules.dedup();
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "use_rslora": self.rslora,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "target_modules": modules,
        })
    }
}

/// Refuses what would change the update and is not read: each of these would merge another adapter than was trained.
fn check_kind(path: &Path, config: &Value) -> Result<(), CheckpointError> {
    let kind = config.get("peft_type").and_then(Value::as_str).unwrap_or("LORA");
    if kind != "LORA" {
        return Err(CheckpointError::field(path, "peft_type", "LORA", kind));
    }
    let is_plain = |it: &Value| match it {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        other => matches!(other, Value::Null | Value::Bool(false)) || other == "none",
    };
    let others = [
        "use_dora",
        "use_qalora",
        "fan_in_fan_out",
        "alpha_pattern",
        "rank_pattern",
        "bias",
        "modules_to_save",
        "layer_replication",
    ];
    for field in others {
        if let Some(found) = config.get(field).filter(|it| !is_plain(it)) {
            return Err(CheckpointError::field(path, field, "plain LoRA, without it", found.to_string()));
        }
    }
    Ok(())
}

fn read_scale(path: &Path, config: &Value) -> Result<(usize, f32), CheckpointError> {
    let shown = |it: Option<&Value>| it.map_or_else(|| "nothing".to_string(), Value::to_string);
    let rank = config.get("r");
    let in_range = |it: &u64| (1..=RANK_MAX as u64).contains(it);
    let found = rank.and_then(Value::as_u64).filter(in_range).and_then(|it| usize::try_from(it).ok());
    let expected = format!("a whole number from 1 to {RANK_MAX}");
    let r = found.ok_or_else(|| CheckpointError::field(path, "r", expected, shown(rank)))?;
    let alpha = config.get("lora_alpha");
    match alpha.and_then(Value::as_f64) {
        #[expect(clippy::cast_possible_truncation, reason = "the scale is used at f32")]
        Some(value) if value.is_finite() && value != 0.0 => Ok((r, value as f32)),
        _ => Err(CheckpointError::field(path, "lora_alpha", "a number other than 0", shown(alpha))),
    }
}

fn read_pair(file: &SafetensorsFile, module: &str, rank: usize) -> Result<LoraPair, CheckpointError> {
    let name = |side: &str| format!("{PREFIX}{module}.lora_{side}.weight");
    let shape = |side: &str| {
        file.shape(&name(side))
            .ok_or_else(|| CheckpointError::MissingTensor { path: file.path().to_path_buf(), name: name(side) })
    };
    let wrong = |side: &str, expected: Vec<usize>, found| CheckpointError::Shape {
        path: file.path().to_path_buf(),
        name: name(side),
        expected,
        found,
    };
    let (a, b) = (shape("A")?, shape("B")?);
    let ([a_rank, inputs], [outputs, b_rank]) = (as_matrix(&a), as_matrix(&b));
    if a_rank != rank {
        return Err(wrong("A", vec![rank, inputs], a));
    }
    if b_rank != rank {
        return Err(wrong("B", vec![outputs, rank], b));
    }
    Ok(LoraPair { a: file.f32(&name("A"))?, b: file.f32(&name("B"))?, rank, inputs, outputs })
}

fn as_matrix(shape: &[usize]) -> [usize; 2] {
    match shape {
        [rows, columns] => [*rows, *columns],
        _ => [0, 0],
    }
}
