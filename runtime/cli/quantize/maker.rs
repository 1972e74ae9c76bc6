//! Encodes files into the work folder, or finds them there. Gives no file its name.

use std::path::PathBuf;
use std::time::Instant;

use fsq_blocks::Format;
use fsq_checkpoint::{Adapter, Checkpoint};
use fsq_gguf::{Digests, Gguf};
use fsq_quantizer::{Encoded, Importance, Mix, Plan, Provenance, Target, quantize};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::choices::{Chosen, Subject};
use super::document::TensorRecord;
use super::work::Work;
use crate::output::hex;
use crate::progress::Progress;

/// What is quantized, opened.
pub(super) struct Inputs {
    pub(super) checkpoint: Checkpoint,
    /// What is merged before anything is encoded.
    pub(super) merged: Vec<Adapter>,
    /// What runs beside the files instead.
    pub(super) beside: Option<Adapter>,
    pub(super) importance: Option<Importance>,
    pub(super) provenance: Provenance,
    pub(super) name: String,
    /// The user's own choice of formats for single tensors.
    pub(super) tensor_types: Vec<(String, Format)>,
    /// What the options chose beyond the recipes.
    pub(super) chosen: Chosen,
}

/// An encoded file without its name.
#[derive(Clone)]
pub(super) struct Candidate {
    pub(super) file: PathBuf,
    pub(super) mix: Mix,
    pub(super) told: Told,
    pub(super) digests: Digests,
}

/// What is kept beside an encoded file.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) seconds: f64,
    pub(super) tensors: Vec<TensorRecord>,
}

/// Makes files of one policy.
pub(super) struct Maker<'a> {
    pub(super) inputs: &'a Inputs,
    pub(super) work: &'a Work,
    pub(super) progress: &'a Progress,
}

impl Maker<'_> {
    /// A file in a format; `raised` tensors get another than the recipe and the user give them.
    pub(super) fn make(&self, mix: Mix, raised: &[(String, Format)]) -> anyhow::Result<Candidate> {
        self.encode(mix, self.inputs.plan(mix, raised))
    }

    /// What files are judged against: a format as its recipe has it, whatever the user chose for single tensors.
    #[cfg(feature = "train")]
    pub(super) fn reference(&self, mix: Mix) -> anyhow::Result<Candidate> {
        self.encode(mix, Plan { name: Some(self.inputs.name.clone()), ..Plan::new(mix) })
    }

    fn encode(&self, mix: Mix, plan: Plan) -> anyhow::Result<Candidate> {
        let Inputs { checkpoint, merged, importance, provenance, .. } = self.inputs;
        let stem = stem(&plan);
        let (file, told) = (self.work.path(&format!("{stem}.gguf")), format!("{stem}.json"));
        if let Some(told) = self.work.kept(&told).filter(|_| file.exists()) {
            self.progress.say(&format!("{}: already encoded", mix.name()));
            let digests = digests(&Gguf::open(&file)?);
            return Ok(Candidate { file, mix, told, digests });
        }
        let started = Instant::now();
        self.progress.stage(mix.name(), checkpoint.dimensions.parameters() as u64);
        let mut watch = |done: usize, _: usize| self.progress.set(done as u64);
        let Encoded { draft, tensors } =
            quantize(checkpoint, merged, &plan, importance.as_ref(), provenance, Target::resumed(&file), &mut watch)?;
        let digested = draft.digests();
        let file = draft.publish()?;
        self.progress.finish();
        let tensors = tensors.into_iter().map(TensorRecord::from).collect();
        let kept = Told { seconds: started.elapsed().as_secs_f64(), tensors };
        self.work.keep(&told, &kept)?;
        let digests = digested.map_or_else(|| Ok(digests(&Gguf::open(&file)?)), anyhow::Ok)?;
        Ok(Candidate { file, mix, told: kept, digests })
    }
}

impl Inputs {
    /// What a format means for this policy.
    pub(super) fn plan(&self, mix: Mix, raised: &[(String, Format)]) -> Plan {
        let recipe = Plan { overrides: self.tensor_types.clone(), codes: self.chosen.codes, ..Plan::new(mix) };
        let chosen = self.chosen.plan.as_ref().filter(|it| it.0 == mix);
        let plan = chosen.map_or(recipe, |it| it.1.clone());
        Plan { name: Some(self.name.clone()), overrides: [plan.overrides.as_slice(), raised].concat(), ..plan }
    }

    /// What is quantized, for whoever chooses.
    pub(super) fn subject(&self) -> Subject<'_> {
        let Self { checkpoint, merged, importance, provenance, .. } = self;
        Subject { checkpoint, merged, importance: importance.as_ref(), provenance }
    }
}

/// Of a file that was not digested while it was written.
pub(super) fn digests(gguf: &Gguf) -> Digests {
    let (file, data) = rayon::join(|| gguf.file_sha256(), || gguf.data_sha256());
    Digests { file, data }
}

/// A name for what a plan gives, which differs where the plan does.
fn stem(plan: &Plan) -> String {
    let digest = hex(&Sha256::digest(format!("{plan:?}")));
    format!("{}-{}", plan.mix.name(), &digest[..16])
}
