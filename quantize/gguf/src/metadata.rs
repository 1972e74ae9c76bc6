//! A file's metadata: keys and values in the order of the file; knows no key but the alignment.

use std::collections::HashMap;

use crate::FieldError;

/// One metadata value, with the type it has in the file.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant says its type")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of values of one type, which an empty one keeps too.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant says its type")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Value {
    /// The type's number in a file.
    pub fn type_id(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::String(_) => 8,
            Self::Array(_) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }

    /// A whole number of any width, if it is one and not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(it) => Some(it.into()),
            Self::U16(it) => Some(it.into()),
            Self::U32(it) => Some(it.into()),
            Self::U64(it) => Some(it),
            Self::I8(it) => it.try_into().ok(),
            Self::I16(it) => it.try_into().ok(),
            Self::I32(it) => it.try_into().ok(),
            Self::I64(it) => it.try_into().ok(),
            _ => None,
        }
    }

    /// The value in few words, for error messages.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Array(array) => format!("an array of {}", array.len()),
            Self::String(text) => {
                format!("the string {:?}", text.chars().take(40).collect::<String>())
            }
            other => format!("{other:?}"),
        }
    }
}

impl Array {
    /// The elements' type's number in a file.
    pub fn type_id(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::String(_) => 8,
            Self::Array(_) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(it) => it.len(),
            Self::I8(it) => it.len(),
            Self::U16(it) => it.len(),
            Self::I16(it) => it.len(),
            Self::U32(it) => it.len(),
            Self::I32(it) => it.len(),
            Self::F32(it) => it.len(),
            Self::Bool(it) => it.len(),
            Self::String(it) => it.len(),
            Self::Array(it) => it.len(),
            Self::U64(it) => it.len(),
            Self::I64(it) => it.len(),
            Self::F64(it) => it.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a metadata value can be read as. Whole numbers are read from any width that holds them.
pub trait FromValue<'a>: Sized {
    /// What is expected, for error messages.
    const EXPECTED: &'static str;
    /// The value, if it is of this type.
    fn from_value(value: &'a Value) -> Option<Self>;
}

macro_rules! readable {
    ($($type:ty, $expected:literal, $value:ident => $read:expr;)*) => {
        $(impl<'a> FromValue<'a> for $type {
            const EXPECTED: &'static str = $expected;
            fn from_value($value: &'a Value) -> Option<Self> {
                $read
            }
        })*
    };
}

readable! {
    &'a str, "a string", value => match value { Value::String(it) => Some(it), _ => None };
    bool, "a bool", value => match value { Value::Bool(it) => Some(*it), _ => None };
    u32, "a whole number of 32 bits", value => value.as_u64()?.try_into().ok();
    u64, "a whole number", value => value.as_u64();
    usize, "a whole number", value => value.as_u64()?.try_into().ok();
    f32, "a 32-bit float", value => match value { Value::F32(it) => Some(*it), _ => None };
    f64, "a float", value => match value {
        Value::F32(it) => Some(f64::from(*it)),
        Value::F64(it) => Some(*it),
        _ => None,
    };
    &'a [String], "an array of strings", value => match value {
        Value::Array(Array::String(it)) => Some(it),
        _ => None,
    };
    &'a [f32], "an array of 32-bit floats", value => match value {
        Value::Array(Array::F32(it)) => Some(it),
        _ => None,
    };
    Vec<bool>, "an array of bools", value => match value {
        Value::Array(Array::Bool(it)) => Some(it.clone()),
        _ => None,
    };
    Vec<u32>, "an array of whole numbers of 32 bits", value => match value {
        Value::Array(Array::U32(it)) => Some(it.clone()),
        Value::Array(Array::I32(it)) => it.iter().map(|it| u32::try_from(*it).ok()).collect(),
        Value::Array(Array::U64(it)) => it.iter().map(|it| u32::try_from(*it).ok()).collect(),
        _ => None,
    };
    Vec<i32>, "an array of signed whole numbers of 32 bits", value => match value {
        Value::Array(Array::I32(it)) => Some(it.clone()),
        Value::Array(Array::U32(it)) => it.iter().map(|it| i32::try_from(*it).ok()).collect(),
        Value::Array(Array::I64(it)) => it.iter().map(|it| i32::try_from(*it).ok()).collect(),
        _ => None,
    };
}

macro_rules! writable {
    ($($type:ty => $make:expr;)*) => {
        $(impl From<$type> for Value {
            fn from(value: $type) -> Self {
                $make(value)
            }
        })*
    };
}

writable! {
    u32 => Value::U32;
    u64 => Value::U64;
    i32 => Value::I32;
    f32 => Value::F32;
    f64 => Value::F64;
    bool => Value::Bool;
    String => Value::String;
    &str => |it: &str| Value::String(it.into());
    Vec<String> => |it| Value::Array(Array::String(it));
    Vec<bool> => |it| Value::Array(Array::Bool(it));
    Vec<u32> => |it| Value::Array(Array::U32(it));
    Vec<i32> => |it| Value::Array(Array::I32(it));
    Vec<f32> => |it| Value::Array(Array::F32(it));
    Vec<f64> => |it| Value::Array(Array::F64(it));
}

/// Keys and values, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    places: HashMap<String, usize>,
}

impl Metadata {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.places.get(key).map(|it| &self.entries[*it].1)
    }

    /// Sets a key, at its place if it is there, else at the end. Returns the value it had.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) -> Option<Value> {
        let (key, value) = (key.into(), value.into());
        if let Some(place) = self.places.get(&key) {
            return Some(std::mem::replace(&mut self.entries[*place].1, value));
        }
        self.places.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        None
    }

    /// Removes a key; the others keep their order.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let place = self.places.remove(key)?;
        let (_, value) = self.entries.remove(place);
        for later in self.places.values_mut().filter(|it| **it > place) {
            *later -= 1;
        }
        Some(value)
    }

    /// Keys and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value of a key, read as a type; `None` when it is absent or of another.
    pub fn read<'a, T: FromValue<'a>>(&'a self, key: &str) -> Option<T> {
        self.get(key).and_then(T::from_value)
    }

    /// The value of a key, read as a type.
    ///
    /// # Errors
    /// Names the key, the type and what was found instead.
    pub fn need<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T, FieldError> {
        self.read(key).ok_or_else(|| FieldError {
            key: key.into(),
            expected: T::EXPECTED,
            found: self.get(key).map_or_else(|| "nothing".into(), Value::shown),
        })
    }

    /// A string, if the key has one.
    pub fn str(&self, key: &str) -> Option<&str> {
        self.read(key)
    }

    /// A whole number, if the key has one of at most 32 bits.
    pub fn u32(&self, key: &str) -> Option<u32> {
        self.read(key)
    }

    /// A whole number, if the key has one.
    pub fn u64(&self, key: &str) -> Option<u64> {
        self.read(key)
    }

    /// A 32-bit float, if the key has one.
    pub fn f32(&self, key: &str) -> Option<f32> {
        self.read(key)
    }

    /// A truth value, if the key has one.
    pub fn bool(&self, key: &str) -> Option<bool> {
        self.read(key)
    }

    /// Strings, if the key has an array of them.
    pub fn str_array(&self, key: &str) -> Option<&[String]> {
        self.read(key)
    }

    /// Whole numbers, if the key has an array of them.
    pub fn u32_array(&self, key: &str) -> Option<Vec<u32>> {
        self.read(key)
    }

    /// Signed whole numbers, if the key has an array of them.
    pub fn i32_array(&self, key: &str) -> Option<Vec<i32>> {
        self.read(key)
    }

    /// 32-bit floats, if the key has an array of them.
    pub fn f32_array(&self, key: &str) -> Option<&[f32]> {
        self.read(key)
    }
}

impl<K: Into<String>, V: Into<Value>> FromIterator<(K, V)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut metadata = Self::new();
        for (key, value) in entries {
            metadata.insert(key, value);
        }
        metadata
    }
}
