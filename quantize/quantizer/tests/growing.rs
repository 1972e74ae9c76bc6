//! What a killed run left of a file: whole tensors stay, everything else is made again, and the bytes are the same.
#![allow(clippy::unwrap_used, reason = "a test that cannot write its files has failed")]

use std::path::{Path, PathBuf};

use fsq_checkpoint::Checkpoint;
use fsq_gguf::Gguf;
use fsq_quantizer::{Encoded, Mix, Plan, Provenance, Target, quantize};

const DRAFT: &str = ".p.gguf.draft";
const JOURNAL: &str = "p.journal";

fn checkpoint() -> Checkpoint {
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama")).unwrap()
}

/// Encodes into a folder, or goes on there; says the steps of progress and the file.
fn encode(folder: &Path, watch: &mut dyn FnMut(usize)) -> (Vec<usize>, Vec<u8>, String) {
    let (checkpoint, path) = (checkpoint(), folder.join("p.gguf"));
    let provenance = Provenance::of("fsq test", &checkpoint, &[], None).unwrap();
    let mut steps = Vec::new();
    let mut progress = |done: usize, _: usize| {
        steps.push(done);
        watch(done);
    };
    let (plan, target) = (Plan::new(Mix::Q8_0), Target::resumed(&path));
    let Encoded { draft, tensors } =
        quantize(&checkpoint, &[], &plan, None, &provenance, target, &mut progress).unwrap();
    let digests = draft.digests().unwrap();
    let path = draft.publish().unwrap();
    let read = Gguf::open(&path).unwrap();
    assert_eq!((digests.file, digests.data), (read.file_sha256(), read.data_sha256()), "digested as it is read");
    (steps, std::fs::read(path).unwrap(), format!("{tensors:?}"))
}

fn copy(from: &Path, to: &Path) {
    for name in [DRAFT, JOURNAL] {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

fn names(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()).collect()
}

#[test]
fn a_run_goes_on_where_another_was_killed() {
    let folders: Vec<tempfile::TempDir> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let [whole, killed, damaged, stale] = [0, 1, 2, 3].map(|it| folders[it].path());
    let n_weights = checkpoint().dimensions.parameters();
    let mut is_taken = false;
    // What lies there half-way is what a kill would leave.
    let (steps, bytes, told) = encode(whole, &mut |done| {
        if done > n_weights / 2 && !is_taken {
            is_taken = true;
            [killed, damaged].iter().for_each(|it| copy(whole, it));
        }
    });
    assert!(is_taken && steps.last() == Some(&n_weights));
    assert_eq!(names(whole), [whole.join("p.gguf")]);

    let again = encode(killed, &mut |_| {});
    assert!(again.0.len() < steps.len() && again.0[1] > n_weights / 4, "{:?}", again.0);
    assert_eq!(again.0.last(), Some(&n_weights));
    assert!(again.1 == bytes && again.2 == told);
    assert_eq!(names(killed), [killed.join("p.gguf")]);

    // Of a byte that is not what the journal says, nothing after it is believed.
    let mut half = std::fs::read(damaged.join(DRAFT)).unwrap();
    let at = half.len() - half.len() / 4;
    half[at] ^= 1;
    std::fs::write(damaged.join(DRAFT), half).unwrap();
    assert!(encode(damaged, &mut |_| {}).1 == bytes);

    // A journal without its draft, or beside another, tells nothing.
    std::fs::write(stale.join(JOURNAL), "{\"name\": \"token_embd.weight\", \"sha256\": 0}\n{").unwrap();
    std::fs::write(stale.join(DRAFT), "GGUF and something else").unwrap();
    let (again, fresh, _) = encode(stale, &mut |_| {});
    assert!(again == steps && fresh == bytes);
}
