//! Metrics as an event file that TensorBoard shows: records with masked CRC-32C, a protocol buffer `Event` in each.
//!
//! The layout is TensorFlow's `tfrecord` and `event.proto`. Only scalars are written; knows nothing of what they mean.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

/// The name of the file: TensorBoard looks for `tfevents` in it.
pub(super) const FILE: &str = "events.out.tfevents.0.fsq";
/// What the first record of a file must say.
const VERSION: &str = "brain.Event:2";
/// Added to a rotated checksum, so that checksums of checksums are none.
const MASK: u32 = 0xa282_ead8;

/// Writes a file anew, with an event for each line of metrics.
pub(super) fn rebuild(path: &Path, lines: &[Value]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&opening(now()))?;
    lines.iter().try_for_each(|it| file.write_all(&event(now(), it)))
}

/// Adds an event for a line of metrics; the file is begun where there is none.
pub(super) fn append(path: &Path, line: &Value) -> io::Result<()> {
    if !path.exists() {
        return rebuild(path, std::slice::from_ref(line));
    }
    OpenOptions::new().append(true).open(path)?.write_all(&event(now(), line))
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |it| it.as_secs_f64())
}

fn opening(wall_time: f64) -> Vec<u8> {
    let mut bytes = double(1, wall_time);
    bytes.extend(delimited(3, VERSION.as_bytes()));
    record(&bytes)
}

/// The numbers of a line, by the names of their fields; those of a list by their places, too.
fn event(wall_time: f64, line: &Value) -> Vec<u8> {
    let step = line.get("step").and_then(Value::as_u64).unwrap_or(0);
    let mut summary = Vec::new();
    for (name, value) in line.as_object().into_iter().flatten().filter(|(name, _)| *name != "step") {
        match value {
            Value::Number(_) => summary.extend(scalar(name, value)),
            Value::Array(values) => {
                for (index, value) in values.iter().enumerate().filter(|(_, it)| it.is_number()) {
                    summary.extend(scalar(&format!("{name}/{index}"), value));
                }
            }
            _ => {}
        }
    }
    let mut bytes = double(1, wall_time);
    if step > 0 {
        bytes.push(2 << 3);
        bytes.extend(varint(step));
    }
    bytes.extend(delimited(5, &summary));
    record(&bytes)
}

/// One `Summary.Value` of a `Summary`.
fn scalar(tag: &str, value: &Value) -> Vec<u8> {
    #[expect(clippy::cast_possible_truncation, reason = "the field has 32 bits")]
    let number = value.as_f64().unwrap_or(f64::NAN) as f32;
    let mut bytes = delimited(1, tag.as_bytes());
    bytes.push(2 << 3 | 5);
    bytes.extend(number.to_le_bytes());
    delimited(1, &bytes)
}

/// Length, its checksum, the bytes, their checksum.
fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), bytes, &masked(bytes)].concat()
}

fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c(bytes).rotate_right(15).wrapping_add(MASK).to_le_bytes()
}

/// Castagnoli's polynomial, least bit first; metrics are short, so bit by bit is fast enough.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

fn double(field: u8, value: f64) -> Vec<u8> {
    let mut bytes = vec![field << 3 | 1];
    bytes.extend(value.to_le_bytes());
    bytes
}

fn delimited(field: u8, bytes: &[u8]) -> Vec<u8> {
    let mut all = vec![field << 3 | 2];
    all.extend(varint(bytes.len() as u64));
    all.extend(bytes);
    all
}

/// Seven bits a byte, the lowest first.
fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn checksums_are_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    /// What `tests/fixtures/tensorboard/make.py` wrote with the package `tensorboard`.
    #[test]
    fn files_are_those_that_tensorboard_writes() {
        let recorded: &[u8] = include_bytes!("../../../../tests/fixtures/tensorboard/recorded.tfevents");
        let lines = [
            json!({"step": 1, "loss": 2.5, "tokens": 512}),
            json!({"step": 300, "loss": 1.25, "success": [0.5, 0.25], "alarms": ["x"], "auroc": null}),
        ];
        let written = [opening(1.5), event(2.5, &lines[0]), event(3.5, &lines[1])].concat();
        assert_eq!(written, recorded);
    }
}
