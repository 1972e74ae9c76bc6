//! Access keys: who may do what. The file holds hashes, never a key, and is replaced whole; knows no HTTP.
//!
//! A key is `fsq_` and 64 hexadecimal digits, 256 bits drawn at random, so a plain SHA-256 hides it: there is nothing
//! to guess from. Keys are found by comparing hashes in constant time, all of them whichever matches.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::ServerError;

/// What every key begins with, so that people and scanners of repositories know one when they see it.
const PREFIX: &str = "fsq_";
/// Characters of a key's name.
const NAME_CHARACTERS_MAX: usize = 64;
/// A file of keys is small; what is larger is not one.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a key opens. Every route asks for one of these, or for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Asking the policy: chat, completions, foresight, tokens, and which policy it is.
    Infer,
    /// Telling what happened, and reading how well predictions did.
    Outcomes,
    /// Reading metrics.
    Metrics,
    /// Everything on the listener for administration.
    Admin,
}

impl Scope {
    /// All scopes.
    pub const ALL: [Scope; 4] = [Scope::Infer, Scope::Outcomes, Scope::Metrics, Scope::Admin];

    /// As files and commands spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Scope::Infer => "infer",
            Scope::Outcomes => "outcomes",
            Scope::Metrics => "metrics",
            Scope::Admin => "admin",
        }
    }
}

/// One key, as far as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// What logs and lists call it; unlike any other's.
    pub name: String,
    /// What it opens.
    pub scopes: BTreeSet<Scope>,
    /// Requests in a minute, as many at once after a minute's rest; `None` for no limit.
    pub requests_per_minute: Option<u32>,
    /// Seconds since 1970.
    pub created_s: u64,
    sha256: [u8; 32],
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    scopes: BTreeSet<Scope>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requests_per_minute: Option<u32>,
    created_s: u64,
    sha256: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    keys: Vec<Row>,
}

/// A file of keys, read.
#[derive(Debug)]
pub struct KeyFile {
    path: PathBuf,
    keys: Vec<Key>,
}

impl KeyFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ServerError::KeyFile`], [`ServerError::KeyRow`].
    pub fn open(path: &Path) -> Result<Self, ServerError> {
        let failed = |source| ServerError::KeyFile { path: path.into(), source };
        let n_bytes = fs::metadata(path).map_err(failed)?.len();
        let broken = |reason: String| ServerError::KeyRow { path: path.into(), reason };
        if n_bytes > FILE_BYTES_MAX {
            return Err(broken(format!("expected at most {FILE_BYTES_MAX} bytes, found {n_bytes}")));
        }
        let document: Document =
            serde_json::from_slice(&fs::read(path).map_err(failed)?).map_err(|it| broken(it.to_string()))?;
        let mut keys: Vec<Key> = Vec::new();
        for row in document.keys {
            let key = Key::read(row).map_err(broken)?;
            if keys.iter().any(|it| it.name == key.name || it.sha256 == key.sha256) {
                return Err(broken(format!("key `{}`: there twice", key.name)));
            }
            keys.push(key);
        }
        Ok(Self { path: path.into(), keys })
    }

    /// Reads a file, or begins one that [`KeyFile::save`] will make.
    ///
    /// # Errors
    /// As [`KeyFile::open`], but for a file that is not there.
    pub fn open_or_new(path: &Path) -> Result<Self, ServerError> {
        match Self::open(path) {
            Err(ServerError::KeyFile { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self { path: path.into(), keys: Vec::new() })
            }
            found => found,
        }
    }

    /// The keys, in the order in which they were made.
    #[must_use]
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// Makes a key and returns it, which nothing can do a second time.
    ///
    /// # Errors
    /// [`ServerError::KeyRow`]: a name that is taken or cannot be one, no scopes.
    pub fn add(
        &mut self,
        name: &str,
        scopes: BTreeSet<Scope>,
        requests_per_minute: Option<u32>,
    ) -> Result<String, ServerError> {
        let secret: [u8; 32] = rand::random();
        let key = format!("{PREFIX}{}", hex(&secret));
        let sha256: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        let created_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs());
        let row = Row { name: name.into(), scopes, requests_per_minute, created_s, sha256: hex(&sha256) };
        let broken = |reason: String| ServerError::KeyRow { path: self.path.clone(), reason };
        let made = Key::read(row).map_err(broken)?;
        if self.keys.iter().any(|it| it.name == made.name) {
            return Err(broken(format!("key `{name}`: there already; revoke it first, or choose another name")));
        }
        self.keys.push(made);
        Ok(key)
    }

    /// Takes a key out; false when there is none of that name.
    pub fn revoke(&mut self, name: &str) -> bool {
        let n_before = self.keys.len();
        self.keys.retain(|it| it.name != name);
        self.keys.len() < n_before
    }

    /// Writes the file anew, under a temporary name first, readable by its owner only.
    ///
    /// # Errors
    /// [`ServerError::KeyFile`].
    pub fn save(&self) -> Result<(), ServerError> {
        let write = || {
            let folder = self.path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            let document = Document { keys: self.keys.iter().map(Key::row).collect() };
            let mut text = serde_json::to_vec_pretty(&document)?;
            text.push(b'\n');
            file.write_all(&text)?;
            file.as_file().sync_all()?;
            file.persist(&self.path).map_err(|it| it.error)?;
            fs::File::open(folder)?.sync_all()
        };
        write().map_err(|source| ServerError::KeyFile { path: self.path.clone(), source })
    }
}

impl Key {
    fn read(row: Row) -> Result<Self, String> {
        let Row { name, scopes, requests_per_minute, created_s, sha256 } = row;
        let is_plain = |it: char| it.is_ascii_alphanumeric() || matches!(it, '.' | '_' | '-');
        if name.is_empty() || name.len() > NAME_CHARACTERS_MAX || !name.chars().all(is_plain) {
            let expected = format!("expected 1 to {NAME_CHARACTERS_MAX} of `a-z A-Z 0-9 . _ -`");
            return Err(format!("key name `{}`: {expected}", crate::refusal::quoted(&name)));
        }
        if scopes.is_empty() {
            return Err(format!("key `{name}`: expected at least one scope"));
        }
        if requests_per_minute == Some(0) {
            return Err(format!("key `{name}`: expected at least one request per minute"));
        }
        let bytes = |it: &str| {
            let digit = |at: usize| it.get(2 * at..2 * at + 2).and_then(|it| u8::from_str_radix(it, 16).ok());
            (it.len() == 64).then(|| (0..32).map(digit).collect::<Option<Vec<u8>>>()).flatten()
        };
        let sha256 = bytes(&sha256).and_then(|it| it.try_into().ok());
        let sha256 = sha256.ok_or_else(|| format!("key `{name}`: `sha256`: expected 64 hexadecimal digits"))?;
        Ok(Self { name, scopes, requests_per_minute, created_s, sha256 })
    }

    fn row(&self) -> Row {
        let Self { name, scopes, requests_per_minute, created_s, sha256 } = self.clone();
        Row { name, scopes, requests_per_minute, created_s, sha256: hex(&sha256) }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|it| format!("{it:02x}")).collect()
}

/// The keys that a running server knows, with what is left of their allowances.
#[derive(Debug)]
pub(crate) struct Keyring {
    path: PathBuf,
    keys: RwLock<Vec<Arc<Key>>>,
    allowances: Mutex<HashMap<String, Allowance>>,
}

/// Requests that a key may still make, refilled as time goes by.
#[derive(Clone, Copy, Debug)]
struct Allowance {
    n: f64,
    at: Instant,
}

impl Keyring {
    /// Reads the keys that a server starts with.
    ///
    /// # Errors
    /// As [`KeyFile::open`]; [`ServerError::KeyRow`] where there are none, since nobody could ask for anything.
    pub(crate) fn open(path: &Path) -> Result<Self, ServerError> {
        let keyring = Self { path: path.into(), keys: RwLock::default(), allowances: Mutex::default() };
        if keyring.reload()? == 0 {
            return Err(ServerError::KeyRow { path: path.into(), reason: "no key in it".into() });
        }
        Ok(keyring)
    }

    /// Reads the file again: a key that is gone opens nothing from here on. On an error the keys stay as they are.
    ///
    /// # Errors
    /// As [`KeyFile::open`].
    pub(crate) fn reload(&self) -> Result<usize, ServerError> {
        let keys: Vec<Arc<Key>> = KeyFile::open(&self.path)?.keys.into_iter().map(Arc::new).collect();
        let n = keys.len();
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(n)
    }

    /// Every key as it is now.
    pub(crate) fn keys(&self) -> Vec<Arc<Key>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes a key out of the file and reads it again; false when there is none of that name.
    ///
    /// # Errors
    /// As [`KeyFile::open`] and [`KeyFile::save`].
    pub(crate) fn revoke(&self, name: &str) -> Result<bool, ServerError> {
        let mut file = KeyFile::open(&self.path)?;
        if !file.revoke(name) {
            return Ok(false);
        }
        file.save()?;
        self.reload()?;
        Ok(true)
    }

    /// What keys there are.
    pub(crate) fn names(&self) -> Vec<String> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.iter().map(|it| it.name.clone()).collect()
    }

    /// The key that was presented, if it is one. Takes as long for every text of a length.
    pub(crate) fn find(&self, presented: &[u8]) -> Option<Arc<Key>> {
        let sha256: [u8; 32] = Sha256::digest(presented).into();
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        for key in keys.iter() {
            if bool::from(key.sha256.ct_eq(&sha256)) {
                found = Some(Arc::clone(key));
            }
        }
        found
    }

    /// Takes one request off a key's allowance, or says how long it has to wait for the next.
    pub(crate) fn spend(&self, key: &Key, now: Instant) -> Result<(), Duration> {
        let Some(per_minute) = key.requests_per_minute.map(f64::from) else { return Ok(()) };
        let mut allowances = self.allowances.lock().unwrap_or_else(PoisonError::into_inner);
        let allowance = allowances.entry(key.name.clone()).or_insert(Allowance { n: per_minute, at: now });
        let refilled = now.saturating_duration_since(allowance.at).as_secs_f64() * per_minute / 60.0;
        allowance.n = (allowance.n + refilled).min(per_minute);
        allowance.at = now;
        if allowance.n < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - allowance.n) * 60.0 / per_minute));
        }
        allowance.n -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_key_is_found_again_and_its_file_does_not_hold_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let mut file = KeyFile::open_or_new(&path).unwrap();
        let key = file.add("agent", [Scope::Infer].into(), Some(6)).unwrap();
        let other = file.add("dashboard", [Scope::Metrics, Scope::Outcomes].into(), None).unwrap();
        assert!(file.add("agent", [Scope::Infer].into(), None).is_err(), "the name is taken");
        assert!(file.add("a b", [Scope::Infer].into(), None).is_err() && file.add("c", [].into(), None).is_err());
        file.save().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&key[4..]) && !text.contains(PREFIX), "{text}");
        let keyring = Keyring::open(&path).unwrap();
        assert_eq!(keyring.find(key.as_bytes()).unwrap().name, "agent");
        assert_eq!(keyring.find(other.as_bytes()).unwrap().scopes, [Scope::Outcomes, Scope::Metrics].into());
        assert_eq!(keyring.find(b"fsq_"), None);
        let mut file = KeyFile::open(&path).unwrap();
        assert!(file.revoke("agent") && !file.revoke("agent"));
        file.save().unwrap();
        assert!(keyring.find(key.as_bytes()).is_some(), "not before the file is read again");
        assert_eq!(keyring.reload().unwrap(), 1);
        assert_eq!(keyring.find(key.as_bytes()), None);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn what_is_wrong_with_a_file_of_keys_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let digest = "0".repeat(64);
        let row = |name: &str, scope: &str, digest: &str| {
            format!("{{\"name\": \"{name}\", \"scopes\": [{scope}], \"created_s\": 0, \"sha256\": \"{digest}\"}}")
        };
        let good = row("a", "\"infer\"", &digest);
        let cases = [
            ("", "EOF"),
            ("{\"keys\": [], \"more\": 1}", "unknown field"),
            ("{\"keys\": []}", "no key in it"),
            (&format!("{{\"keys\": [{}]}}", row("a", "\"root\"", &digest)), "unknown variant"),
            (&format!("{{\"keys\": [{}]}}", row("a", "", &digest)), "scope"),
            (&format!("{{\"keys\": [{}]}}", row("é", "\"infer\"", &digest)), "key name"),
            (&format!("{{\"keys\": [{}]}}", row("a", "\"infer\"", "éé")), "sha256"),
            (&format!("{{\"keys\": [{good}, {good}]}}"), "twice"),
        ];
        for (text, expected) in cases {
            fs::write(&path, text).unwrap();
            let error = Keyring::open(&path).unwrap_err().to_string();
            assert!(error.contains("keys.json") && error.contains(expected), "{text}: {error}");
        }
        assert!(matches!(Keyring::open(&folder.path().join("none")), Err(ServerError::KeyFile { .. })));
    }

    #[test]
    fn an_allowance_runs_out_and_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let mut file = KeyFile::open_or_new(&path).unwrap();
        file.add("agent", [Scope::Infer].into(), Some(2)).unwrap();
        file.save().unwrap();
        let (keyring, key, now) = (Keyring::open(&path).unwrap(), &file.keys()[0], Instant::now());
        assert!(keyring.spend(key, now).is_ok() && keyring.spend(key, now).is_ok());
        let wait = keyring.spend(key, now).unwrap_err();
        assert!((wait.as_secs_f64() - 30.0).abs() < 1e-6);
        assert!(keyring.spend(key, now + Duration::from_secs(29)).is_err());
        assert!(keyring.spend(key, now + Duration::from_secs(31)).is_ok());
    }
}
