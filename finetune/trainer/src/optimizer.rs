//! AdamW with f32 moments, clipping by the global norm, and a state that can be saved.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};

use crate::TrainError;
use crate::autograd::with_values;
use crate::policy::values;

/// The optimizer's constants. Defaults follow the Llama papers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the mean of gradients.
    pub beta1: f32,
    /// Decay of the mean of squared gradients.
    pub beta2: f32,
    /// Added to the root.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Largest global norm of the gradient.
    pub clip_norm: f32,
}

impl AdamWConfig {
    /// What the Llama papers use.
    pub const LLAMA: Self = Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.01, clip_norm: 1.0 };
}

/// Moments of one variable.
#[derive(Clone, Default)]
struct Moments {
    mean: Vec<f32>,
    square: Vec<f32>,
}

/// Gradients of several batches, added up in the order in which they came.
#[derive(Default)]
pub struct GradientSums {
    by_name: BTreeMap<String, Vec<f32>>,
}

impl GradientSums {
    /// Adds those of one batch.
    ///
    /// # Errors
    /// When a variable has no gradient, which means that the graph was cut.
    pub fn add(&mut self, trained: &BTreeMap<String, Var>, grads: &GradStore) -> Result<(), TrainError> {
        for (name, var) in trained {
            let grad = grads.get(var.as_tensor()).ok_or_else(|| TrainError::NoGradient(name.clone()))?;
            let grad = with_values(&grad.contiguous()?, <[f32]>::to_vec)?;
            match self.by_name.get_mut(name) {
                Some(sum) => sum.iter_mut().zip(&grad).for_each(|(sum, it)| *sum += it),
                None => drop(self.by_name.insert(name.clone(), grad)),
            }
        }
        Ok(())
    }
}

/// AdamW (arXiv 1711.05101) as PyTorch computes it.
pub struct AdamW {
    config: AdamWConfig,
    steps: i32,
    moments: BTreeMap<String, Moments>,
}

impl AdamW {
    /// An optimizer that has made no step.
    #[must_use]
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, steps: 0, moments: BTreeMap::new() }
    }

    /// Steps made so far, over all resumed runs.
    #[must_use]
    pub fn steps(&self) -> usize {
        usize::try_from(self.steps).unwrap_or(0)
    }

    /// One step; returns the global norm of the gradient before clipping.
    ///
    /// `scale` multiplies every gradient first: one over the batch's weight.
    ///
    /// # Errors
    /// When a variable has no gradient, which means that the graph was cut.
    pub fn step(
        &mut self,
        trained: &BTreeMap<String, Var>,
        grads: &GradStore,
        scale: f32,
        learning_rate: f32,
    ) -> Result<f32, TrainError> {
        let mut sums = GradientSums::default();
        sums.add(trained, grads)?;
        self.step_summed(trained, &sums, scale, learning_rate)
    }

    /// The same from the gradients of several batches.
    ///
    /// # Errors
    /// As [`AdamW::step`].
    pub fn step_summed(
        &mut self,
        trained: &BTreeMap<String, Var>,
        sums: &GradientSums,
        scale: f32,
        learning_rate: f32,
    ) -> Result<f32, TrainError> {
        let mut found = Vec::with_capacity(trained.len());
        let mut square = 0.0f64;
        for (name, var) in trained {
            let grad = sums.by_name.get(name).ok_or_else(|| TrainError::NoGradient(name.clone()))?;
            let grad: Vec<f32> = grad.iter().map(|it| it * scale).collect();
            square += grad.iter().map(|it| f64::from(*it).powi(2)).sum::<f64>();
            found.push((name, var, grad));
        }
        #[expect(clippy::cast_possible_truncation, reason = "a norm is reported at f32")]
        let norm = square.sqrt() as f32;
        // PyTorch's `clip_grad_norm_` adds 1e-6 to the norm.
        let clip = (self.config.clip_norm / (norm + 1e-6)).min(1.0);
        self.steps += 1;
        for (name, var, grad) in found {
            self.update(name, var, &grad, clip, learning_rate)?;
        }
        Ok(norm)
    }

    fn update(&mut self, name: &str, var: &Var, grad: &[f32], clip: f32, rate: f32) -> Result<(), TrainError> {
        let AdamWConfig { beta1, beta2, eps, weight_decay, .. } = self.config;
        let moments = self.moments.entry(name.to_string()).or_default();
        moments.mean.resize(grad.len(), 0.0);
        moments.square.resize(grad.len(), 0.0);
        let (bias1, bias2) = (1.0 - beta1.powi(self.steps), 1.0 - beta2.powi(self.steps));
        let (step_size, root_bias) = (rate / bias1, bias2.sqrt());
        let mut weights = values(var)?;
        let states = moments.mean.iter_mut().zip(&mut moments.square);
        for ((weight, grad), (mean, square)) in weights.iter_mut().zip(grad).zip(states) {
            let grad = grad * clip;
            *mean = beta1 * *mean + (1.0 - beta1) * grad;
            *square = beta2 * *square + (1.0 - beta2) * grad * grad;
            *weight *= 1.0 - rate * weight_decay;
            *weight -= step_size * *mean / (square.sqrt() / root_bias + eps);
        }
        Ok(var.set(&Tensor::from_vec(weights, var.shape(), &Device::Cpu)?)?)
    }

    /// Writes weights and moments to one file: temporary name, sync, rename.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path, trained: &BTreeMap<String, Var>) -> Result<(), TrainError> {
        let mut tensors = HashMap::new();
        for (name, var) in trained {
            tensors.insert(format!("weight/{name}"), var.as_tensor().clone());
            if let Some(moments) = self.moments.get(name) {
                let tensor = |it: &Vec<f32>| Tensor::from_vec(it.clone(), var.shape(), &Device::Cpu);
                tensors.insert(format!("mean/{name}"), tensor(&moments.mean)?);
                tensors.insert(format!("square/{name}"), tensor(&moments.square)?);
            }
        }
        tensors.insert("steps".into(), Tensor::new(&[i64::from(self.steps)], &Device::Cpu)?);
        let draft = path.with_extension("draft");
        candle_core::safetensors::save(&tensors, &draft)?;
        let fault = |source| TrainError::Io { path: path.to_path_buf(), source };
        std::fs::File::open(&draft).and_then(|it| it.sync_all()).map_err(fault)?;
        std::fs::rename(&draft, path).map_err(fault)
    }

    /// Reads weights and moments back.
    ///
    /// # Errors
    /// When the file is absent, damaged, or of another policy.
    pub fn load(&mut self, path: &Path, trained: &BTreeMap<String, Var>) -> Result<(), TrainError> {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
        let get = |name: String| {
            tensors.get(&name).ok_or_else(|| TrainError::State {
                path: path.to_path_buf(),
                field: name.clone(),
                expected: "a tensor".into(),
                found: "nothing".into(),
            })
        };
        for (name, var) in trained {
            var.set(get(format!("weight/{name}"))?)?;
            let read = |kind: &str| -> Result<Vec<f32>, TrainError> {
                let name = format!("{kind}/{name}");
                Ok(if tensors.contains_key(&name) { with_values(get(name)?, <[f32]>::to_vec)? } else { Vec::new() })
            };
            self.moments.insert(name.clone(), Moments { mean: read("mean")?, square: read("square")? });
        }
        let steps = get("steps".into())?.to_vec1::<i64>()?;
        self.steps = steps.first().and_then(|it| i32::try_from(*it).ok()).unwrap_or(0);
        Ok(())
    }
}
