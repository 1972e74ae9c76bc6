//! Reads numbers, strings and values from bytes, never past their end and never allocating more than they hold.

use std::path::Path;

use crate::metadata::{Array, Value};
use crate::{GgufError, HEADER_BYTES_MAX, NESTING_MAX};

/// A place in the bytes that a header may have.
pub(crate) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    offset: usize,
    /// Whether the file goes on where a header must have ended.
    goes_on: bool,
}

/// Reads a little-endian number; makes the array of them.
macro_rules! number {
    ($cursor:expr, $what:expr, $type:ty) => {
        <$type>::from_le_bytes($cursor.array($what)?)
    };
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(path: &'a Path, file: &'a [u8]) -> Self {
        let bytes = &file[..file.len().min(HEADER_BYTES_MAX)];
        Self { path, bytes, offset: 0, goes_on: bytes.len() < file.len() }
    }

    pub(crate) fn path(&self) -> &'a Path {
        self.path
    }

    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    fn left(&self) -> u64 {
        (self.bytes.len() - self.offset) as u64
    }

    fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8], GgufError> {
        let n_bytes = usize::try_from(n).ok().filter(|_| n <= self.left());
        let Some(n_bytes) = n_bytes else {
            if self.goes_on {
                let found = n.saturating_add(self.offset as u64);
                return Err(self.limit(&format!("bytes of the header, up to {what}"), HEADER_BYTES_MAX as u64, found));
            }
            return Err(GgufError::Truncated {
                path: self.path.to_path_buf(),
                what: what.into(),
                offset: self.offset,
                expected: n,
                found: self.left(),
            });
        };
        let start = self.offset;
        self.offset += n_bytes;
        Ok(&self.bytes[start..self.offset])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    pub(crate) fn four_bytes(&mut self, what: &str) -> Result<[u8; 4], GgufError> {
        self.array(what)
    }

    pub(crate) fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        Ok(number!(self, what, u32))
    }

    pub(crate) fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        Ok(number!(self, what, u64))
    }

    /// Reads a number of things that take at least `bytes_each`; more than the file could hold, or than `most`, is
    /// refused here, before anything is allocated for them.
    pub(crate) fn count(&mut self, what: &str, bytes_each: u64, most: u64) -> Result<usize, GgufError> {
        let found = self.u64(what)?;
        let limit = most.min(self.left() / bytes_each);
        usize::try_from(found).ok().filter(|_| found <= limit).ok_or_else(|| self.limit(what, limit, found))
    }

    fn limit(&self, what: &str, limit: u64, found: u64) -> GgufError {
        GgufError::Limit { path: self.path.to_path_buf(), what: what.into(), limit, found }
    }

    /// Reads a string of at most `bytes_max`.
    pub(crate) fn string(&mut self, what: &str, bytes_max: u64) -> Result<String, GgufError> {
        let n_bytes = self.u64(what)?;
        if n_bytes > bytes_max {
            return Err(self.limit(&format!("bytes of {what}"), bytes_max, n_bytes));
        }
        let bytes = self.take(n_bytes, what)?;
        let text = std::str::from_utf8(bytes);
        text.map(str::to_owned).map_err(|_| GgufError::Utf8 { path: self.path.to_path_buf(), what: what.into() })
    }

    fn bool(&mut self, what: &str) -> Result<bool, GgufError> {
        match self.array(what)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [found] => Err(GgufError::Bool { path: self.path.to_path_buf(), what: what.into(), found }),
        }
    }

    /// Reads a value of the type of that number.
    pub(crate) fn value(&mut self, type_id: u32, what: &str) -> Result<Value, GgufError> {
        Ok(match type_id {
            0 => Value::U8(number!(self, what, u8)),
            1 => Value::I8(number!(self, what, i8)),
            2 => Value::U16(number!(self, what, u16)),
            3 => Value::I16(number!(self, what, i16)),
            4 => Value::U32(number!(self, what, u32)),
            5 => Value::I32(number!(self, what, i32)),
            6 => Value::F32(number!(self, what, f32)),
            7 => Value::Bool(self.bool(what)?),
            8 => Value::String(self.string(what, u64::MAX)?),
            9 => Value::Array(self.elements(what, 1)?),
            10 => Value::U64(number!(self, what, u64)),
            11 => Value::I64(number!(self, what, i64)),
            12 => Value::F64(number!(self, what, f64)),
            found => return Err(self.value_type(what, found)),
        })
    }

    fn value_type(&self, what: &str, found: u32) -> GgufError {
        GgufError::ValueType { path: self.path.to_path_buf(), what: what.into(), found }
    }

    /// Reads an array: the type of its elements, their number, and them.
    fn elements(&mut self, what: &str, depth: u32) -> Result<Array, GgufError> {
        if depth > NESTING_MAX {
            return Err(self.limit(&format!("arrays in arrays of {what}"), NESTING_MAX.into(), depth.into()));
        }
        let type_id = self.u32(what)?;
        // A string has a length of eight bytes, an array a type of four and a length of eight.
        let bytes_each = match type_id {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 12,
            found => return Err(self.value_type(what, found)),
        };
        let n = self.count(&format!("elements of {what}"), bytes_each, u64::MAX)?;
        Ok(match type_id {
            0 => Array::U8(self.repeat(n, |it| Ok(number!(it, what, u8)))?),
            1 => Array::I8(self.repeat(n, |it| Ok(number!(it, what, i8)))?),
            2 => Array::U16(self.repeat(n, |it| Ok(number!(it, what, u16)))?),
            3 => Array::I16(self.repeat(n, |it| Ok(number!(it, what, i16)))?),
            4 => Array::U32(self.repeat(n, |it| Ok(number!(it, what, u32)))?),
            5 => Array::I32(self.repeat(n, |it| Ok(number!(it, what, i32)))?),
            6 => Array::F32(self.repeat(n, |it| Ok(number!(it, what, f32)))?),
            7 => Array::Bool(self.repeat(n, |it| it.bool(what))?),
            8 => Array::String(self.repeat(n, |it| it.string(what, u64::MAX))?),
            10 => Array::U64(self.repeat(n, |it| Ok(number!(it, what, u64)))?),
            11 => Array::I64(self.repeat(n, |it| Ok(number!(it, what, i64)))?),
            12 => Array::F64(self.repeat(n, |it| Ok(number!(it, what, f64)))?),
            _ => Array::Array(self.repeat(n, |it| it.elements(what, depth + 1))?),
        })
    }

    fn repeat<T>(&mut self, n: usize, read: impl Fn(&mut Self) -> Result<T, GgufError>) -> Result<Vec<T>, GgufError> {
        let mut elements = Vec::with_capacity(n);
        for _ in 0..n {
            elements.push(read(self)?);
        }
        Ok(elements)
    }
}
