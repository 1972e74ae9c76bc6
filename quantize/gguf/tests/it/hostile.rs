//! One file per way to be wrong, each refused with an error that says what and where; and every damaged byte.

use fsq_gguf::Gguf;

use crate::{sample_metadata, sample_tensors, written};

/// Bytes of a file, put together piece by piece.
#[derive(Clone, Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn header(n_tensors: u64, n_entries: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(3).u64(n_tensors).u64(n_entries)
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn u32(self, it: u32) -> Self {
        self.raw(&it.to_le_bytes())
    }

    fn u64(self, it: u64) -> Self {
        self.raw(&it.to_le_bytes())
    }

    fn string(self, it: &[u8]) -> Self {
        self.u64(it.len() as u64).raw(it)
    }

    fn tensor(self, name: &str, shape: &[u64], format: u32, offset: u64) -> Self {
        let told = self.string(name.as_bytes()).u32(shape.len() as u32);
        shape.iter().fold(told, |told, it| told.u64(*it)).u32(format).u64(offset)
    }

    fn data(mut self, n_bytes: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32) + n_bytes, 0);
        self
    }
}

/// Asserts that the bytes are refused with a message that holds `expect`.
fn check(bytes: Bytes, expect: &str) {
    match Gguf::from_named_bytes("f.gguf", &bytes.0) {
        Ok(_) => panic!("accepted; expected `{expect}`"),
        Err(error) => {
            let message = error.to_string();
            assert!(message.starts_with("f.gguf: ") && message.contains(expect), "{message}; expected `{expect}`");
        }
    }
}

fn padded(bytes: Bytes) -> Bytes {
    bytes.raw(&[0; 64])
}

#[test]
fn not_a_gguf_file() {
    check(Bytes::default(), "magic at byte 0: expected 4 more bytes, found 0");
    check(Bytes::default().raw(b"GG"), "expected 4 more bytes, found 2");
    check(Bytes::default().raw(b"GGML\x03\0\0\0"), "expected it to begin with `GGUF`, found [71, 71, 77, 76]");
}

#[test]
fn a_version_that_is_not_read() {
    check(Bytes::default().raw(b"GGUF").u32(1), "expected GGUF version 2 or 3, found 1");
    check(Bytes::default().raw(b"GGUF").u32(4), "found 4");
    check(Bytes::default().raw(b"GGUF\0\0\0\x03"), "found 50331648 (big endian)");
}

#[test]
fn counts_beyond_the_file() {
    check(padded(Bytes::header(u64::MAX, 0)), "number of tensors: expected at most 3, found 18446744073709551615");
    check(padded(Bytes::header(0, 1 << 40)), "number of metadata entries: expected at most 4");
}

#[test]
fn keys_and_strings_beyond_the_file() {
    check(padded(Bytes::header(0, 1).u64(70_000)), "bytes of metadata key 0: expected at most 65535, found 70000");
    check(padded(Bytes::header(0, 1).u64(65_000)), "metadata key 0 at byte 32: expected 65000 more bytes, found 64");
    check(padded(Bytes::header(0, 1).string(b"\xff\xfe")), "metadata key 0: expected UTF-8");
    let key = Bytes::header(0, 1).string(b"k");
    check(
        padded(key.clone().u32(8).u64(u64::MAX)),
        "metadata `k` at byte 45: expected 18446744073709551615 more bytes",
    );
    check(padded(key.clone().u32(8).string(b"\x80")), "metadata `k`: expected UTF-8");
    check(key.u32(10).u32(1), "metadata `k` at byte 37: expected 8 more bytes, found 4");
}

#[test]
fn values_of_no_type() {
    let key = Bytes::header(0, 1).string(b"k");
    check(padded(key.clone().u32(13)), "metadata `k`: expected a value type from 0 to 12, found 13");
    check(padded(key.clone().u32(7).raw(&[2])), "metadata `k`: expected a bool of 0 or 1, found 2");
    check(padded(key.u32(9).u32(99).u64(1)), "metadata `k`: expected a value type from 0 to 12, found 99");
}

#[test]
fn arrays_beyond_the_file() {
    let key = Bytes::header(0, 1).string(b"k").u32(9);
    check(padded(key.clone().u32(6).u64(1 << 60)), "elements of metadata `k`: expected at most 16");
    check(padded(key.clone().u32(8).u64(9)), "elements of metadata `k`: expected at most 8, found 9");
    check(padded(key.clone().u32(7).u64(2).raw(&[1, 5])), "expected a bool of 0 or 1, found 5");
    let nested = (0..5).fold(key, |it, _| it.u32(9).u64(1));
    check(padded(nested.u32(0).u64(1)), "arrays in arrays of metadata `k`: expected at most 4, found 5");
}

#[test]
fn a_key_twice() {
    let twice = Bytes::header(0, 2).string(b"k").u32(4).u32(1).string(b"k").u32(4).u32(2);
    check(twice, "metadata `k` is there twice");
}

#[test]
fn an_alignment_that_is_none() {
    for (alignment, shown) in [(0, "U32(0)"), (48, "U32(48)"), (1 << 20, "U32(1048576)")] {
        let bytes = Bytes::header(0, 1).string(b"general.alignment").u32(4).u32(alignment);
        check(bytes, &format!("`general.alignment`: expected a power of two up to 65536, found {shown}"));
    }
    let text = Bytes::header(0, 1).string(b"general.alignment").u32(8).string(b"32");
    check(text, "`general.alignment`: expected a power of two");
}

#[test]
fn tensors_without_a_proper_name() {
    let name = "n".repeat(64);
    check(padded(Bytes::header(1, 0).tensor(&name, &[1], 0, 0)), "bytes of tensor name: expected at most 63, found 64");
    let twice = Bytes::header(2, 0).tensor("t", &[8], 0, 0).tensor("t", &[8], 0, 32);
    check(twice.data(64), "tensor `t` is there twice");
}

#[test]
fn shapes_that_are_none() {
    let expect = "tensor `t`: expected one to four dimensions from 1 whose bytes fit in memory, found ";
    let shapes: [&[u64]; 6] =
        [&[], &[0], &[4, 0], &[u64::MAX], &[1 << 32, 1 << 32], &[1 << 20, 1 << 20, 1 << 20, 1 << 20]];
    for shape in shapes {
        check(Bytes::header(1, 0).tensor("t", shape, 0, 0).data(64), &format!("{expect}{shape:?}"));
    }
    let five = Bytes::header(1, 0).tensor("t", &[1, 1, 1, 1, 1], 0, 0).data(64);
    check(five, "dimensions of tensor `t`: expected at most 4, found 5");
    let many = Bytes::header(1, 0).string(b"t").u32(u32::MAX).data(64);
    check(many, "dimensions of tensor `t`: expected at most 4, found 4294967295");
}

#[test]
fn formats_and_rows_that_do_not_exist() {
    let unknown = Bytes::header(1, 0).tensor("blk.0.attn_q.weight", &[32], 77, 0).data(64);
    check(unknown, "tensor `blk.0.attn_q.weight`: expected a known format, found number 77");
    let ragged = Bytes::header(1, 0).tensor("t", &[300], 12, 0).data(4096);
    check(ragged, "tensor `t`: expected rows of a multiple of 256 weights for Q4_K, found 300");
}

#[test]
fn offsets_that_lead_astray() {
    let tensor = |offset: u64, n_data: usize| Bytes::header(1, 0).tensor("t", &[8], 0, offset).data(n_data);
    check(tensor(4, 64), "tensor `t`: expected an offset that is a multiple of 32, found 4");
    check(tensor(64, 64), "tensor `t`: expected its end within 64 bytes of tensor data, found 96");
    check(tensor(0, 31), "within 31 bytes of tensor data, found 32");
    check(tensor(u64::MAX - 31, 64), "found 18446744073709551616");
    check(Bytes::header(1, 0).tensor("t", &[8], 0, 0), "within 0 bytes of tensor data, found 32");
    let overlapping = Bytes::header(2, 0).tensor("first", &[16], 0, 32).tensor("second", &[16], 0, 0).data(96);
    check(overlapping, "tensor `first` overlaps tensor `second`");
}

#[test]
fn a_missing_or_empty_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none.gguf");
    assert!(Gguf::open(&path).err().unwrap().to_string().contains("none.gguf: No such file"));
    std::fs::write(&path, b"").unwrap();
    assert!(Gguf::open(&path).err().unwrap().to_string().contains("magic at byte 0"));
    assert!(Gguf::open(folder.path()).is_err());
}

/// Reads everything that a caller could ask of a file that was accepted.
fn exercise(bytes: &[u8]) -> bool {
    let Ok(gguf) = Gguf::from_bytes(bytes) else {
        return false;
    };
    for view in gguf.views() {
        assert_eq!(view.bytes.len(), view.format.row_bytes(view.cols()).unwrap() * view.rows());
        assert_eq!(view.to_f32().len(), view.cols() * view.rows());
    }
    gguf.metadata().iter().all(|(key, value)| gguf.metadata().get(key) == Some(value))
}

#[test]
fn no_damaged_byte_panics() {
    let whole = written(&sample_metadata(), &sample_tensors());
    assert!(exercise(&whole));
    for place in 0..whole.len() {
        let mut damaged = whole.clone();
        for change in [1u8, 2, 0x10, 0x40, 0x80, 0xff] {
            damaged[place] = whole[place] ^ change;
            exercise(&damaged);
        }
        for value in [0, 1, 0x7f, 0xff] {
            damaged[place] = value;
            exercise(&damaged);
        }
    }
}

#[test]
fn no_cut_panics_and_none_within_a_tensor_is_accepted() {
    let whole = written(&sample_metadata(), &sample_tensors());
    // The last tensor, of 16 bytes, is padded to 32.
    for length in 0..whole.len() {
        assert_eq!(exercise(&whole[..length]), length >= whole.len() - 16, "cut to {length} of {}", whole.len());
    }
}

#[test]
fn large_numbers_anywhere_in_the_header_do_not_panic() {
    let whole = written(&sample_metadata(), &sample_tensors());
    for place in 0..whole.len() - 8 {
        for number in [u64::MAX, 1 << 63, i64::MAX as u64, u64::from(u32::MAX), 1 << 31] {
            let mut damaged = whole.clone();
            damaged[place..place + 8].copy_from_slice(&number.to_le_bytes());
            exercise(&damaged);
        }
    }
}
