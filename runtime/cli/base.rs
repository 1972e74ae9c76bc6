//! The shipped base policy, which the binary carries.

use std::borrow::Cow;
use std::path::Path;

use fsq_checkpoint::{Checkpoint, CheckpointFiles};

use crate::output;

/// Files of the base, by name.
const FILES: [(&str, &[u8]); 5] = [
    ("config.json", include_bytes!("../../finetune/base/config.json")),
    ("tokenizer.json", include_bytes!("../../finetune/base/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../finetune/base/tokenizer_config.json")),
    ("chat_template.jinja", include_bytes!("../../finetune/base/chat_template.jinja")),
    ("model.safetensors", include_bytes!("../../finetune/base/model.safetensors")),
];

/// Opens the base, from a folder of its own so that a person can look at it.
pub(crate) fn open(folder: &Path) -> anyhow::Result<Checkpoint> {
    // Proved in memory first: a damaged binary must not be blamed on the folder.
    let bytes = |name: &str| FILES.iter().find(|it| it.0 == name).map_or(&[][..], |it| it.1);
    let text = |name: &str| std::str::from_utf8(bytes(name)).map(Cow::Borrowed);
    let files = CheckpointFiles {
        config: text("config.json")?,
        weights: Cow::Borrowed(bytes("model.safetensors")),
        tokenizer: text("tokenizer.json")?,
        chat_template: Some(text("chat_template.jinja")?),
    };
    Checkpoint::from_files("the shipped base", files)?;
    output::make_folder(folder)?;
    for (name, bytes) in FILES {
        let path = folder.join(name);
        if std::fs::metadata(&path).is_ok_and(|it| it.len() == bytes.len() as u64) {
            continue;
        }
        output::write_whole(&path, bytes)?;
    }
    Ok(Checkpoint::open(folder)?)
}
