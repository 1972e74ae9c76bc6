//! A policy's base weights, tokenizer and templates in Hugging Face layout.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, View};
use serde_json::{Value, json};

use crate::safetensors_file::SafetensorsFile;
use crate::{CheckpointError, Dimensions, TensorName, tensor_names};

/// How weights are stored in a safetensors file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredType {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// 16-bit float with 8 exponent bits.
    BF16,
}

/// An open checkpoint: every tensor that its architecture names is present with the right shape.
pub struct Checkpoint {
    /// Where it lies; the embedded one has a name that is no path.
    pub path: PathBuf,
    /// Its sizes.
    pub dimensions: Dimensions,
    /// `config.json`.
    pub config: Value,
    /// `tokenizer.json`, unparsed.
    pub tokenizer_json: String,
    /// The Jinja chat template, where there is one.
    pub chat_template: Option<String>,
    /// Beginning-of-sequence id.
    pub bos: Option<u32>,
    /// Ids that end a turn; the first is the one a file names.
    pub eos: Vec<u32>,
    files: Vec<SafetensorsFile>,
    places: HashMap<String, usize>,
}

/// The files of a checkpoint that is held in memory, such as the one in the binary.
pub struct CheckpointFiles {
    /// `config.json`; empty for a policy made from scratch, whose sizes say all.
    pub config: Cow<'static, str>,
    /// `model.safetensors`.
    pub weights: Cow<'static, [u8]>,
    /// `tokenizer.json`.
    pub tokenizer: Cow<'static, str>,
    /// `chat_template.jinja`.
    pub chat_template: Option<Cow<'static, str>>,
}

/// A tensor to be written.
pub struct NamedTensor<'a> {
    /// Its Hugging Face name.
    pub name: String,
    /// `[rows, columns]`, or `[width]`.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Cow<'a, [f32]>,
}

impl Checkpoint {
    /// Opens a folder and checks that every tensor of the architecture is there.
    ///
    /// # Errors
    /// The file, field or tensor that is absent, damaged or of another shape.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let config_path = path.join("config.json");
        let config = read_json(&config_path)?;
        let tokenizer_json = read_text(&path.join("tokenizer.json"))?;
        let chat_template = read_chat_template(path)?;
        let files = open_shards(path)?;
        Self::assemble(path, &config_path, &config, files, tokenizer_json, chat_template)
    }

    /// Opens files that are already in memory; `name` stands in for a path in error messages.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_files(name: &str, files: CheckpointFiles) -> Result<Self, CheckpointError> {
        let path = Path::new(name);
        let config_path = path.join("config.json");
        let config: Value = serde_json::from_str(&files.config)
            .map_err(|source| CheckpointError::Json { path: config_path.clone(), source })?;
        let weights = SafetensorsFile::from_bytes(&path.join("model.safetensors"), files.weights)?;
        let template = files.chat_template.map(Cow::into_owned);
        Self::assemble(path, &config_path, &config, vec![weights], files.tokenizer.into_owned(), template)
    }

    fn assemble(
        path: &Path,
        config_path: &Path,
        config: &Value,
        files: Vec<SafetensorsFile>,
        tokenizer_json: String,
        chat_template: Option<String>,
    ) -> Result<Self, CheckpointError> {
        refuse_quantized(config_path, config)?;
        let dimensions = Dimensions::from_config(config_path, config)?;
        let mut places = HashMap::new();
        for (index, file) in files.iter().enumerate() {
            places.extend(file.names().into_iter().map(|it| (it, index)));
        }
        let checkpoint = Self {
            path: path.to_path_buf(),
            dimensions,
            config: config.clone(),
            tokenizer_json,
            chat_template,
            bos: token_ids(config.get("bos_token_id")).first().copied(),
            eos: token_ids(config.get("eos_token_id")),
            files,
            places,
        };
        checkpoint.check_tensors()?;
        Ok(checkpoint)
    }

    fn check_tensors(&self) -> Result<(), CheckpointError> {
        for tensor in tensor_names(&self.dimensions) {
            let found = self
                .shape(&tensor.hf)
                .ok_or_else(|| CheckpointError::MissingTensor { path: self.path.clone(), name: tensor.hf.clone() })?;
            if found != tensor.shape {
                let (path, name, expected) = (self.path.clone(), tensor.hf, tensor.shape);
                return Err(CheckpointError::Shape { path, name, expected, found });
            }
        }
        Ok(())
    }

    /// The stored shape of a tensor, if it is there.
    #[must_use]
    pub fn shape(&self, hf_name: &str) -> Option<Vec<usize>> {
        self.places.get(hf_name).and_then(|it| self.files[*it].shape(hf_name))
    }

    /// How a tensor is stored, if it is there and made of floats.
    #[must_use]
    pub fn stored(&self, hf_name: &str) -> Option<StoredType> {
        match self.places.get(hf_name).and_then(|it| self.files[*it].dtype(hf_name))? {
            Dtype::F32 => Some(StoredType::F32),
            Dtype::F16 => Some(StoredType::F16),
            Dtype::BF16 => Some(StoredType::BF16),
            _ => None,
        }
    }

    /// A tensor's values, row-major, widened to f32.
    ///
    /// # Errors
    /// When the tensor is absent, unreadable or of a type that is no float.
    pub fn tensor_f32(&self, hf_name: &str) -> Result<Vec<f32>, CheckpointError> {
        let missing = || CheckpointError::MissingTensor { path: self.path.clone(), name: hf_name.into() };
        self.files[*self.places.get(hf_name).ok_or_else(missing)?].f32(hf_name)
    }

    /// Some of its rows.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor_f32`].
    pub fn rows_f32(&self, hf_name: &str, rows: &Range<usize>) -> Result<Vec<f32>, CheckpointError> {
        let missing = || CheckpointError::MissingTensor { path: self.path.clone(), name: hf_name.into() };
        self.files[*self.places.get(hf_name).ok_or_else(missing)?].rows_f32(hf_name, rows)
    }

    /// A tensor's bytes as stored, for digests.
    ///
    /// # Errors
    /// When the tensor is absent or unreadable.
    pub fn tensor_bytes(&self, hf_name: &str) -> Result<Vec<u8>, CheckpointError> {
        let missing = || CheckpointError::MissingTensor { path: self.path.clone(), name: hf_name.into() };
        self.files[*self.places.get(hf_name).ok_or_else(missing)?].bytes(hf_name)
    }

    /// The same, some bytes at a time, for what does not need them all at once.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor_bytes`].
    pub fn for_each_piece(&self, hf_name: &str, each: &mut dyn FnMut(&[u8])) -> Result<(), CheckpointError> {
        let missing = || CheckpointError::MissingTensor { path: self.path.clone(), name: hf_name.into() };
        self.files[*self.places.get(hf_name).ok_or_else(missing)?].for_each_piece(hf_name, each)
    }

    /// Writes a checkpoint folder: everything into a temporary folder beside it, then one rename.
    ///
    /// `like` gives the tokenizer, the template and, where it has one, the configuration, of which only the stored
    /// type is changed. An existing folder is replaced.
    ///
    /// # Errors
    /// When a file cannot be written; the old folder is then still there.
    pub fn write(
        path: &Path,
        like: &CheckpointFiles,
        dimensions: &Dimensions,
        special: (u32, u32),
        stored: StoredType,
        tensors: &[NamedTensor<'_>],
    ) -> Result<(), CheckpointError> {
        let draft = draft_folder(path, like, dimensions, special, stored)?;
        write_file(&draft.path().join("model.safetensors"), &serialized(path, stored, tensors)?)?;
        replace_folder(draft, path)
    }

    /// The same, tensor by tensor: `values` gives those of each, so that one of them at a time is held.
    ///
    /// # Errors
    /// As [`Checkpoint::write`], or what `values` says.
    pub fn write_each<E: From<CheckpointError>>(
        path: &Path,
        like: &CheckpointFiles,
        dimensions: &Dimensions,
        special: (u32, u32),
        stored: StoredType,
        values: &dyn Fn(&TensorName) -> Result<Vec<f32>, E>,
    ) -> Result<(), E> {
        let draft = draft_folder(path, like, dimensions, special, stored)?;
        let names = tensor_names(dimensions);
        let failed = RefCell::new(None);
        let views = names.iter().map(|name| {
            let bytes = || match values(name) {
                Ok(values) => encoded(stored, &values),
                Err(error) => {
                    failed.borrow_mut().get_or_insert(error);
                    vec![0; name.shape.iter().product::<usize>() * stored.bytes()]
                }
            };
            (name.hf.clone(), LazyTensor { dtype: stored.dtype(), shape: name.shape.clone(), bytes })
        });
        let file = draft.path().join("model.safetensors");
        let written = safetensors::serialize_to_file(views, Some(written_by_torch()), &file);
        if let Some(error) = failed.into_inner() {
            return Err(error);
        }
        let (path_of_fault, reason) = (|| path.to_path_buf(), |it: safetensors::SafeTensorError| it.to_string());
        written.map_err(|it| CheckpointError::Safetensors { path: path_of_fault(), reason: reason(it) })?;
        std::fs::File::open(&file).and_then(|it| it.sync_all()).map_err(|it| CheckpointError::io(path, it))?;
        Ok(replace_folder(draft, path)?)
    }
}

/// A tensor whose bytes are made when they are written.
struct LazyTensor<F> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: F,
}

impl<F: Fn() -> Vec<u8>> View for LazyTensor<F> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        (self.bytes)().into()
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

impl StoredType {
    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::BF16 => Dtype::BF16,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

/// transformers reads only files that say so.
fn written_by_torch() -> HashMap<String, String> {
    HashMap::from([("format".to_string(), "pt".to_string())])
}

/// A temporary folder beside the real one, with everything but the weights in it.
fn draft_folder(
    path: &Path,
    like: &CheckpointFiles,
    dimensions: &Dimensions,
    special: (u32, u32),
    stored: StoredType,
) -> Result<tempfile::TempDir, CheckpointError> {
    let parent = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(|it| CheckpointError::io(parent, it))?;
    let draft = tempfile::Builder::new()
        .prefix(".checkpoint-")
        .tempdir_in(parent)
        .map_err(|it| CheckpointError::io(parent, it))?;
    let config = config_for(path, like, dimensions, special, stored)?;
    write_file(&draft.path().join("config.json"), pretty(&config).as_bytes())?;
    write_file(&draft.path().join("tokenizer.json"), like.tokenizer.as_bytes())?;
    let tokenizer_config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false});
    write_file(&draft.path().join("tokenizer_config.json"), pretty(&tokenizer_config).as_bytes())?;
    if let Some(template) = &like.chat_template {
        write_file(&draft.path().join("chat_template.jinja"), template.as_bytes())?;
    }
    Ok(draft)
}

/// The configuration of a checkpoint to be written.
fn config_for(
    path: &Path,
    like: &CheckpointFiles,
    dimensions: &Dimensions,
    (bos, eos): (u32, u32),
    stored: StoredType,
) -> Result<Value, CheckpointError> {
    let path = path.join("config.json");
    if like.config.is_empty() {
        return match dimensions.beyond_plain() {
            None => Ok(dimensions.to_config(bos, eos)),
            Some(found) => Err(CheckpointError::field(&path, "config.json", "that of the policy it came from", found)),
        };
    }
    let mut config: Value =
        serde_json::from_str(&like.config).map_err(|source| CheckpointError::Json { path, source })?;
    // transformers 5 writes `dtype`, earlier ones `torch_dtype`.
    let key = if config.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    let name = match stored {
        StoredType::F32 => "float32",
        StoredType::F16 => "float16",
        StoredType::BF16 => "bfloat16",
    };
    if let Some(fields) = config.as_object_mut() {
        fields.insert(key.into(), name.into());
    }
    Ok(config)
}

/// The safetensors bytes of some tensors.
pub(crate) fn serialized(
    path: &Path,
    stored: StoredType,
    tensors: &[NamedTensor<'_>],
) -> Result<Vec<u8>, CheckpointError> {
    let encoded: Vec<Vec<u8>> = tensors.iter().map(|it| encoded(stored, &it.values)).collect();
    let fault = |reason: String| CheckpointError::Safetensors { path: path.to_path_buf(), reason };
    let mut views = BTreeMap::new();
    for (tensor, bytes) in tensors.iter().zip(&encoded) {
        let view = TensorView::new(stored.dtype(), tensor.shape.clone(), bytes).map_err(|it| fault(it.to_string()))?;
        views.insert(tensor.name.clone(), view);
    }
    safetensors::serialize(views, Some(written_by_torch())).map_err(|it| fault(it.to_string()))
}

fn encoded(stored: StoredType, values: &[f32]) -> Vec<u8> {
    match stored {
        StoredType::F32 => values.iter().flat_map(|it| it.to_le_bytes()).collect(),
        StoredType::F16 => values.iter().flat_map(|it| f16::from_f32(*it).to_le_bytes()).collect(),
        StoredType::BF16 => values.iter().flat_map(|it| bf16::from_f32(*it).to_le_bytes()).collect(),
    }
}

/// Moves a finished draft to its real name; what stood there before is removed only afterwards.
pub(crate) fn replace_folder(draft: tempfile::TempDir, path: &Path) -> Result<(), CheckpointError> {
    let fault = |it| CheckpointError::io(path, it);
    let fresh = draft.keep();
    if path.exists() {
        let mut old = path.as_os_str().to_owned();
        old.push(".old");
        let old = PathBuf::from(old);
        if old.exists() {
            std::fs::remove_dir_all(&old).map_err(fault)?;
        }
        std::fs::rename(path, &old).map_err(fault)?;
        std::fs::rename(&fresh, path).map_err(fault)?;
        return std::fs::remove_dir_all(&old).map_err(fault);
    }
    std::fs::rename(&fresh, path).map_err(fault)
}

pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let write = || {
        let mut file = std::fs::File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|it| CheckpointError::io(path, it))
}

pub(crate) fn read_text(path: &Path) -> Result<String, CheckpointError> {
    std::fs::read_to_string(path).map_err(|it| CheckpointError::io(path, it))
}

pub(crate) fn read_json(path: &Path) -> Result<Value, CheckpointError> {
    serde_json::from_str(&read_text(path)?).map_err(|source| CheckpointError::Json { path: path.to_path_buf(), source })
}

pub(crate) fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn read_chat_template(path: &Path) -> Result<Option<String>, CheckpointError> {
    let beside = path.join("chat_template.jinja");
    if beside.exists() {
        return read_text(&beside).map(Some);
    }
    let inside = path.join("tokenizer_config.json");
    if !inside.exists() {
        return Ok(None);
    }
    Ok(read_json(&inside)?.get("chat_template").and_then(Value::as_str).map(str::to_string))
}

fn open_shards(path: &Path) -> Result<Vec<SafetensorsFile>, CheckpointError> {
    let index_path = path.join("model.safetensors.index.json");
    if !index_path.exists() {
        return Ok(vec![SafetensorsFile::open(&path.join("model.safetensors"))?]);
    }
    let index = read_json(&index_path)?;
    let map = index.get("weight_map").and_then(Value::as_object).ok_or_else(|| {
        CheckpointError::field(&index_path, "weight_map", "an object of tensor names", "something else")
    })?;
    let mut shards: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
    for (tensor, shard) in map {
        let shown = || shard.to_string();
        let field = || format!("weight_map.{tensor}");
        let shard = shard
            .as_str()
            .ok_or_else(|| CheckpointError::field(&index_path, &field(), "the name of a file", shown()))?;
        shards.entry(shard).or_default().push(tensor);
    }
    let mut files = Vec::new();
    for (shard, tensors) in shards {
        let inside = Path::new(shard).components().all(|it| matches!(it, Component::Normal(_)));
        if !inside {
            return Err(CheckpointError::ShardPath { path: index_path, shard: shard.into() });
        }
        let file = SafetensorsFile::open(&path.join(shard))?;
        // A shard of another download would be found here, not after an hour of work.
        if let Some(tensor) = tensors.into_iter().find(|it| file.shape(it).is_none()) {
            let (path, name, shard) = (index_path, tensor.clone(), shard.into());
            return Err(CheckpointError::IndexedTensor { path, name, shard });
        }
        files.push(file);
    }
    Ok(files)
}

/// Refuses weights that lie on a grid already: adapters merged there are rounded away again, and what is rounded twice
/// loses twice.
fn refuse_quantized(path: &Path, config: &Value) -> Result<(), CheckpointError> {
    let Some(found) = config.get("quantization_config").filter(|it| !it.is_null()) else { return Ok(()) };
    let method = found.get("quant_method").and_then(Value::as_str).unwrap_or("an unnamed method");
    let bits = ["bits", "load_in_4bit", "load_in_8bit"].iter().find_map(|key| match (*key, found.get(key)?) {
        ("bits", bits) => bits.as_u64(),
        ("load_in_4bit", Value::Bool(true)) => Some(4),
        ("load_in_8bit", Value::Bool(true)) => Some(8),
        _ => None,
    });
    let bits = bits.map_or_else(String::new, |it| format!(" in {it} bits"));
    let expected = "the weights it was made from: rounding to a grid again erases merged adapters and loses twice";
    Err(CheckpointError::field(path, "quantization_config", expected, format!("weights quantized by {method}{bits}")))
}

fn token_ids(value: Option<&Value>) -> Vec<u32> {
    let one = |it: &Value| it.as_u64().and_then(|it| u32::try_from(it).ok());
    match value {
        Some(Value::Array(many)) => many.iter().filter_map(one).collect(),
        Some(single) => one(single).into_iter().collect(),
        None => Vec::new(),
    }
}
