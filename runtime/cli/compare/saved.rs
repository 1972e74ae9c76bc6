//! Logits of a reference in a safetensors file, for policies that do not fit into memory beside each other.
//!
//! | tensor | type and shape | is |
//! |---|---|---|
//! | `tokens` | U32 `[tokens]` | all passages, one after the other |
//! | `passages` | U64 `[passages, 4]` | of each: tokens, places judged, places stated, task |
//! | `judged` `stated_at` | U32 | places, counted from the start of their passage |
//! | `logits` | F32 `[places judged, vocabulary]` | what comes after each of those places |
//! | `stated` | F32 `[places stated, 21]` | log-probabilities of the grid answers; NaN where they say nothing |
//!
//! The metadata name the reference, what was read, and the vocabulary's digest.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Context;
use fsq_calibrate::StatedDistribution;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::passages::{Passage, n_judged};
use super::sides::Side;
use crate::failure::Refusal;
use crate::output::Draft;

/// Largest file that is written. More would be a mistake: the statistics have settled long before.
pub(super) const FILE_BYTES_MAX: u64 = 64 << 30;
/// Largest header that is read, as the safetensors format limits it.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Numbers of a passage in `passages`.
const PASSAGE_NUMBERS: usize = 4;
/// Answers of the grid.
const LEVELS: usize = 21;
const U32_BYTES: u64 = 4;

/// What the file says of itself beside its tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct About {
    /// Name of the reference's file.
    pub(super) reference: String,
    /// What was read, as JSON.
    pub(super) source: String,
    pub(super) vocabulary_sha256: String,
}

/// Bytes of the logits of some passages, which is what counts of their file.
pub(super) fn logits_bytes(passages: &[Passage], vocab: usize) -> u64 {
    n_judged(passages) as u64 * vocab as u64 * U32_BYTES
}

/// Runs a side over the passages and writes what it gives.
pub(super) fn save(
    path: &Path,
    about: &About,
    side: &mut dyn Side,
    passages: &[Passage],
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<()> {
    let mut draft = Draft::new(path)?;
    draft.write(&header(about, passages, side.vocab())?)?;
    let words =
        |of: fn(&Passage) -> Vec<u32>| passages.iter().flat_map(of).flat_map(u32::to_le_bytes).collect::<Vec<_>>();
    draft.write(&words(|it| it.tokens.clone()))?;
    for passage in passages {
        let sizes = [passage.tokens.len(), passage.judged.len(), passage.stated_at.len()].map(|it| it as u64);
        for number in sizes.into_iter().chain([passage.task]) {
            draft.write(&number.to_le_bytes())?;
        }
    }
    draft.write(&words(|it| places(&it.judged)))?;
    draft.write(&words(|it| places(&it.stated_at)))?;
    let (mut done, mut stated) = (0, Vec::new());
    for passage in passages {
        for piece in passage.pieces() {
            for value in side.rows(passage, &piece)? {
                draft.write(&value.to_le_bytes())?;
            }
            done += piece.len();
            progress(done);
        }
        stated.extend(side.stated(passage)?);
    }
    for distribution in stated {
        let nothing = [f64::NAN; LEVELS];
        for mass in distribution.as_ref().map_or(&nothing, StatedDistribution::mass) {
            #[expect(clippy::cast_possible_truncation, reason = "logarithms were f32 where they came from")]
            draft.write(&(mass.ln() as f32).to_le_bytes())?;
        }
    }
    draft.publish()
}

/// A passage is shorter than 2^32: its tokens' cache would fill any memory.
#[expect(clippy::cast_possible_truncation, reason = "see above")]
fn places(places: &[usize]) -> Vec<u32> {
    places.iter().map(|it| *it as u32).collect()
}

/// The header with its length in front, so long that what follows is aligned.
fn header(about: &About, passages: &[Passage], vocab: usize) -> anyhow::Result<Vec<u8>> {
    let count = |of: fn(&Passage) -> usize| passages.iter().map(of).sum::<usize>();
    let (n_judged, n_stated) = (count(|it| it.judged.len()), count(|it| it.stated_at.len()));
    let n_tokens = count(|it| it.tokens.len());
    let shapes: [(&str, &str, Vec<usize>, usize); 6] = [
        ("tokens", "U32", vec![n_tokens], 4),
        ("passages", "U64", vec![passages.len(), PASSAGE_NUMBERS], 8),
        ("judged", "U32", vec![n_judged], 4),
        ("stated_at", "U32", vec![n_stated], 4),
        ("logits", "F32", vec![n_judged, vocab], 4),
        ("stated", "F32", vec![n_stated, LEVELS], 4),
    ];
    let mut fields = serde_json::Map::from_iter([("__metadata__".to_owned(), serde_json::to_value(about)?)]);
    let mut start = 0;
    for (name, dtype, shape, bytes) in shapes {
        let end = start + shape.iter().product::<usize>() * bytes;
        fields.insert(name.into(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}));
        start = end;
    }
    let mut text = Value::Object(fields).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok([&(text.len() as u64).to_le_bytes(), text.as_slice()].concat())
}

/// A file that [`save`] wrote, read from front to back.
pub(super) struct Saved {
    path: PathBuf,
    pub(super) about: About,
    pub(super) passages: Vec<Passage>,
    vocab: usize,
    /// Of the places stated, in order; those that have been asked for are gone.
    stated: std::vec::IntoIter<Option<StatedDistribution>>,
    /// Stands at the next row.
    file: BufReader<File>,
}

impl Saved {
    /// Opens a file; all but its logits is read and proved.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        Self::read(path).with_context(|| path.display().to_string())
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        let mut file = BufReader::new(File::open(path)?);
        let (metadata, about, data_start) = read_header(&mut file)?;
        let tensor = |name: &str, dtype: Dtype, n_dimensions: usize| {
            let found = metadata.info(name).filter(|it| it.dtype == dtype && it.shape.len() == n_dimensions);
            let refused = || Refusal::new(format!("tensor `{name}`: expected {dtype:?} of {n_dimensions} dimensions"));
            found.map(|it| (it.shape.clone(), it.data_offsets)).ok_or_else(refused)
        };
        let mut bytes = |(start, end): (usize, usize)| -> anyhow::Result<Vec<u8>> {
            file.seek(SeekFrom::Start(data_start + start as u64))?;
            let mut bytes = vec![0; end - start];
            file.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        let mut words = |name: &str| anyhow::Ok(words_of(&bytes(tensor(name, Dtype::U32, 1)?.1)?));
        let (tokens, judged, stated_at) = (words("tokens")?, words("judged")?, words("stated_at")?);
        let (shape, at) = tensor("passages", Dtype::U64, 2)?;
        let sizes: Vec<u64> =
            bytes(at)?.chunks_exact(8).map(|it| u64::from_le_bytes(it.try_into().unwrap_or_default())).collect();
        let (logits, logits_at) = tensor("logits", Dtype::F32, 2)?;
        let (levels, stated_in) = tensor("stated", Dtype::F32, 2)?;
        let fits = shape[1] == PASSAGE_NUMBERS
            && logits[0] == judged.len()
            && levels == [stated_at.len(), LEVELS]
            && tokens.iter().all(|it| (*it as usize) < logits[1]);
        let passages = fits.then(|| passages(&sizes, &tokens, &judged, &stated_at)).flatten();
        let passages = passages.ok_or_else(|| Refusal::new("its tensors contradict each other"))?;
        let scores: Vec<f32> = words_of(&bytes(stated_in)?).into_iter().map(f32::from_bits).collect();
        let of_row = |it: &[f32]| <&[f32; LEVELS]>::try_from(it).ok().and_then(StatedDistribution::from_log_probs);
        let stated: Vec<_> = scores.chunks_exact(LEVELS).map(of_row).collect();
        file.seek(SeekFrom::Start(data_start + logits_at.0 as u64))?;
        let stated = stated.into_iter();
        Ok(Self { path: path.to_owned(), about, passages, vocab: logits[1], stated, file })
    }
}

/// The header, what it says of the file, and where the tensors begin. The file is as long as the header says.
fn read_header(file: &mut BufReader<File>) -> anyhow::Result<(Metadata, About, u64)> {
    let not_ours = || Refusal::new("expected logits that `fsq compare --save-logits` wrote");
    let file_bytes = file.get_ref().metadata()?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| not_ours())?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_BYTES_MAX.min(file_bytes) {
        return Err(not_ours().into());
    }
    let mut text = vec![0; usize::try_from(length)?];
    file.read_exact(&mut text).map_err(|_| not_ours())?;
    let metadata: Metadata = serde_json::from_slice(&text).map_err(|_| not_ours())?;
    let about = metadata.metadata().as_ref().and_then(|it| serde_json::from_value(json!(it)).ok());
    let about: About = about.ok_or_else(not_ours)?;
    let data_start = 8 + length;
    let expected = data_start + metadata.data_len() as u64;
    if file_bytes != expected {
        let refusal = Refusal::new(format!("expected {expected} bytes, found {file_bytes}"));
        return Err(refusal.hint("the file is not whole: copy it again and compare its length").into());
    }
    Ok((metadata, about, data_start))
}

fn words_of(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|it| u32::from_le_bytes(it.try_into().unwrap_or_default())).collect()
}

/// Cuts what all passages hold into passages; `None` where the numbers do not fit.
fn passages(sizes: &[u64], mut tokens: &[u32], mut judged: &[u32], mut stated_at: &[u32]) -> Option<Vec<Passage>> {
    let mut passages = Vec::new();
    for numbers in sizes.chunks_exact(PASSAGE_NUMBERS) {
        let take = |from: &mut &[u32], n: u64| -> Option<Vec<u32>> {
            let (taken, rest) = from.split_at_checked(usize::try_from(n).ok()?)?;
            *from = rest;
            Some(taken.to_vec())
        };
        let tokens = take(&mut tokens, numbers[0])?;
        let places = |from: &mut &[u32], n: u64| -> Option<Vec<usize>> {
            let places: Vec<usize> = take(from, n)?.into_iter().map(|it| it as usize).collect();
            let ascend = places.windows(2).all(|it| it[0] < it[1]);
            // After the last token comes nothing that could be judged, and before the first nothing is read.
            (ascend && places.last().is_none_or(|it| it + 1 < tokens.len())).then_some(places)
        };
        let (judged, stated_at) = (places(&mut judged, numbers[1])?, places(&mut stated_at, numbers[2])?);
        // What is stated is read behind what has been run.
        let run = judged.last().map_or(0, |it| it + 1);
        if judged.is_empty() || stated_at.first() == Some(&0) || stated_at.last().is_some_and(|it| *it > run) {
            return None;
        }
        passages.push(Passage { tokens, judged, stated_at, task: numbers[3] });
    }
    let all_taken = tokens.is_empty() && judged.is_empty() && stated_at.is_empty();
    (all_taken && !passages.is_empty()).then_some(passages)
}

impl Side for Saved {
    fn vocab(&self) -> usize {
        self.vocab
    }

    fn rows(&mut self, _passage: &Passage, piece: &Range<usize>) -> anyhow::Result<Vec<f32>> {
        let mut bytes = vec![0; piece.len() * self.vocab * size_of::<f32>()];
        self.file.read_exact(&mut bytes).with_context(|| self.path.display().to_string())?;
        Ok(words_of(&bytes).into_iter().map(f32::from_bits).collect())
    }

    fn stated(&mut self, passage: &Passage) -> anyhow::Result<Vec<Option<StatedDistribution>>> {
        Ok(self.stated.by_ref().take(passage.stated_at.len()).collect())
    }
}
