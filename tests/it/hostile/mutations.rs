//! A valid small file with bits flipped, bytes overwritten, cut, doubled and moved: seeded, and thousands of times.

use std::path::Path;

use fsq_gguf::{Draft, Gguf, TensorSpec};

use super::TABLES;
use super::raw::Raw;
use super::table::{Expected, Made};
use crate::fuzz_bodies;

/// Numbers that look random; the same for the same seed (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 11) as usize % n.max(1)
    }

    /// A range within `n` bytes, mostly short.
    fn range(&mut self, n: usize) -> std::ops::Range<usize> {
        let start = self.below(n);
        let length_max = if self.below(4) == 0 { n } else { 32 };
        start..(start + 1 + self.below(length_max)).min(n)
    }
}

/// Numbers at the edges of what fields hold.
const EDGES: [u64; 10] = [0, 1, 31, 0x7f, 0xffff, u32::MAX as u64, 1 << 31, i64::MAX as u64, 1 << 63, u64::MAX];

/// One to three changes; half of them in the first `n_header` bytes, where there is more to break.
fn mutate(whole: &[u8], n_header: usize, numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for _ in 0..=numbers.below(3) {
        if bytes.is_empty() {
            break;
        }
        let reach = if numbers.below(2) == 0 { n_header.min(bytes.len()) } else { bytes.len() };
        let at = numbers.below(reach);
        match numbers.below(8) {
            0 => bytes[at] ^= 1 << numbers.below(8),
            1 => bytes[at] = numbers.next() as u8,
            2 => {
                let edge = EDGES[numbers.below(EDGES.len())].to_le_bytes();
                let n = (1 << numbers.below(4)).min(bytes.len() - at);
                bytes[at..at + n].copy_from_slice(&edge[..n]);
            }
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(numbers.range(reach))),
            5 => {
                let doubled = bytes[numbers.range(reach)].to_vec();
                bytes.splice(at..at, doubled);
            }
            6 => {
                let (from, to) = (numbers.range(reach), numbers.range(reach));
                let moved = bytes[from].to_vec();
                bytes.splice(to, moved);
            }
            _ => {
                let noise: Vec<u8> = (0..=numbers.below(24)).map(|_| numbers.next() as u8).collect();
                bytes.splice(at..at, noise);
            }
        }
    }
    bytes
}

/// The tensors and metadata of a file, written by our writer.
fn rewritten(bytes: &[u8], path: &Path) -> Vec<u8> {
    let gguf = Gguf::from_bytes(bytes).unwrap();
    let spec =
        |it: fsq_gguf::TensorView<'_>| TensorSpec { name: it.name.into(), format: it.format, shape: it.shape.to_vec() };
    let specs: Vec<TensorSpec> = gguf.views().map(spec).collect();
    let mut draft = Draft::create(path, gguf.metadata(), &specs).unwrap();
    gguf.views().for_each(|it| draft.write(it.name, it.bytes).unwrap());
    std::fs::read(draft.finish().unwrap().publish().unwrap()).unwrap()
}

/// Runs a body on so many mutations, and says how many it accepted.
fn try_all(whole: &[u8], n: usize, accepts: impl Fn(&[u8]) -> bool) -> usize {
    let gguf = Gguf::from_bytes(whole).unwrap();
    let n_header = whole.len() - gguf.parts()[0].data().len();
    let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15);
    (0..n).filter(|_| accepts(&mutate(whole, n_header, &mut numbers))).count()
}

#[test]
fn ten_thousand_mutations_open_or_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let small = Raw::policy().only(1..4).without("tokenizer.ggml.tokens").without("tokenizer.ggml.token_type");
    let whole = rewritten(&small.bytes(), &folder.path().join("small.gguf"));
    let n_opened = try_all(&whole, 10_000, |it| fuzz_bodies::open(it).is_some());
    println!("{n_opened} of 10,000 mutations of {} bytes open", whole.len());
    assert!((500..9_500).contains(&n_opened), "{n_opened} open: the mutations are too tame or too wild");
}

#[test]
fn a_thousand_mutations_of_a_policy_run_or_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let whole = rewritten(&Raw::policy().bytes(), &folder.path().join("policy.gguf"));
    let n_run = try_all(&whole, 1_000, fuzz_bodies::run);
    println!("{n_run} of 1,000 mutations of a policy run");
    assert!((20..950).contains(&n_run), "{n_run} run: the mutations are too tame or too wild");
}

#[test]
fn hostile_bytes_go_through_what_is_fuzzed() {
    for row in TABLES.iter().flat_map(|it| it.iter()) {
        let all = match row.made {
            Made::One(make) => vec![make().bytes()],
            Made::Bytes(make) => vec![make()],
            Made::Each(make) => make(),
            Made::Files(_) => Vec::new(),
        };
        let runs = all.iter().any(|it| fuzz_bodies::run(it));
        // What strict inspection alone finds runs; all else must not.
        let may_run = matches!(row.expected, Expected::Strict(_) | Expected::Sound | Expected::NotTokenized(_));
        assert!(!runs || may_run, "{} ({}) runs", row.number, row.idea);
    }
}
