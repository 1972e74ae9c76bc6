//! Codes and formats chosen with importance: what error feedback gains, when it is given up, and files that fit a size.
#![allow(clippy::unwrap_used, reason = "a test that cannot write its files has failed")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fsq_blocks::Format;
use fsq_checkpoint::{
    Architecture, Checkpoint, CheckpointFiles, Dimensions, NamedTensor, Options, StoredType, tensor_names,
};
use fsq_gguf::Gguf;
use fsq_quantizer::{
    Codes, Encoded, Importance, InputSquares, Mix, Moments, Plan, Provenance, QuantizeError, Sensitivities, file_bytes,
    plan_text, quantize, read_plan,
};

const HIDDEN: usize = 256;
const NAME: &str = "blk.0.ffn_up.weight";

/// Reproducible numbers, roughly normal with a standard deviation of 1.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        let mut uniform = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 40) as f32 / (1u32 << 24) as f32 - 0.5
        };
        (0..12).map(|_| uniform()).sum()
    }

    fn take(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }
}

fn sizes() -> Dimensions {
    Dimensions {
        architecture: Architecture::Llama,
        n_layers: 2,
        hidden: HIDDEN,
        intermediate: 512,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 64,
        vocab: 324,
        context: 128,
        rms_eps: 1e-5,
        rope_theta: 10_000.0,
        tied: true,
        options: Options::PLAIN,
    }
}

fn checkpoint(folder: &Path) -> Checkpoint {
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama/tokenizer.json");
    let like = CheckpointFiles {
        config: "".into(),
        weights: (&[] as &[u8]).into(),
        tokenizer: std::fs::read_to_string(tokenizer).unwrap().into(),
        chat_template: None,
    };
    let mut numbers = Numbers(1);
    let tensors: Vec<_> = (tensor_names(&sizes()).into_iter())
        .map(|it| {
            let values = numbers.take(it.shape.iter().product()).iter().map(|it| 0.05 * it).collect::<Vec<_>>();
            NamedTensor { name: it.hf, shape: it.shape, values: values.into() }
        })
        .collect();
    let path = folder.join("base");
    Checkpoint::write(&path, &like, &sizes(), (0, 1), StoredType::F32, &tensors).unwrap();
    Checkpoint::open(&path).unwrap()
}

/// Inputs of `columns` columns that a few directions mostly explain, `[n, columns]`.
fn inputs(columns: usize, n: usize, seed: u64) -> Vec<f32> {
    const DIRECTIONS: usize = 24;
    let directions = Numbers(7).take(DIRECTIONS * columns);
    let mut numbers = Numbers(seed);
    let mut rows = Vec::with_capacity(n * columns);
    for _ in 0..n {
        let mut row: Vec<f32> = numbers.take(columns).iter().map(|it| 0.3 * it).collect();
        for direction in directions.chunks_exact(columns) {
            let factor = numbers.next();
            row.iter_mut().zip(direction).for_each(|(sum, it)| *sum += factor * it);
        }
        rows.extend(row);
    }
    rows
}

fn moments(columns: usize, rows: &[f32]) -> Moments {
    let mut products = vec![0.0f64; columns * columns];
    for row in rows.chunks_exact(columns) {
        for (left, products) in row.iter().zip(products.chunks_exact_mut(columns)) {
            products.iter_mut().zip(row).for_each(|(sum, right)| *sum += f64::from(*left) * f64::from(*right));
        }
    }
    let n = (rows.len() / columns) as f64;
    Moments::new("m", columns, Arc::new(products.iter().map(|it| (it / n) as f32).collect())).unwrap()
}

/// Importance of one matrix: moments over some inputs, and over others.
fn importance(fitted: &[f32], held_out: &[f32]) -> Importance {
    let seen = moments(HIDDEN, fitted);
    let squares = InputSquares { sums: seen.squares(), counts: vec![1.0] };
    Importance {
        tensors: [(NAME.to_owned(), squares)].into(),
        moments: [(NAME.to_owned(), seen)].into(),
        held_out: [(NAME.to_owned(), moments(HIDDEN, held_out))].into(),
        ..Importance::default()
    }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self) -> PathBuf {
        self.path().join("policy.gguf")
    }
}

fn run(checkpoint: &Checkpoint, plan: &Plan, importance: Option<&Importance>, path: &Path) -> Encoded {
    let provenance = provenance(checkpoint, importance);
    quantize(checkpoint, &[], plan, importance, &provenance, path, &mut |_, _| {}).unwrap()
}

fn provenance(checkpoint: &Checkpoint, importance: Option<&Importance>) -> Provenance {
    Provenance::of("fsq test", checkpoint, &[], importance).unwrap()
}

/// The weights of the matrix that is looked at, as a file has them.
fn decoded(encoded: Encoded) -> (Vec<f32>, Vec<u8>) {
    let gguf = Gguf::open(&encoded.draft.publish().unwrap()).unwrap();
    let view = gguf.tensor(NAME).unwrap();
    (view.to_f32(), view.bytes.to_vec())
}

/// The mean square of what outputs are off by, over inputs that nothing has seen.
fn output_error(exact: &[f32], decoded: &[f32], inputs: &[f32]) -> f64 {
    let off: Vec<f32> = exact.iter().zip(decoded).map(|(a, b)| a - b).collect();
    let mut sum = 0.0;
    for x in inputs.chunks_exact(HIDDEN) {
        for row in off.chunks_exact(HIDDEN) {
            let out: f64 = row.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            sum += out * out;
        }
    }
    sum
}

#[test]
fn error_feedback_lowers_the_error_of_outputs_in_every_format() {
    let folder = Folder::new();
    let checkpoint = checkpoint(folder.path());
    let importance = importance(&inputs(HIDDEN, 3000, 11), &inputs(HIDDEN, 600, 12));
    let unseen = inputs(HIDDEN, 200, 13);
    let exact = checkpoint.tensor_f32("model.layers.0.mlp.up_proj.weight").unwrap();
    let formats = [Format::Q2_K, Format::Q3_K, Format::Q4_K, Format::Q5_K, Format::Q6_K, Format::IQ4_XS];
    for format in formats.into_iter().chain([Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::IQ4_NL]) {
        let error = |codes: Codes| {
            let plan = Plan { overrides: vec![(NAME.into(), format)], codes, ..Plan::new(Mix::F16) };
            let encoded = run(&checkpoint, &plan, Some(&importance), &folder.file());
            let told = encoded.tensors.iter().find(|it| it.name == NAME).unwrap();
            assert_eq!(told.codes, codes, "{}", format.name());
            output_error(&exact, &decoded(encoded).0, &unseen)
        };
        let [stock, descent, feedback] = Codes::ALL.map(error);
        let shown = format!("{}: stock {stock}, descent {descent}, feedback {feedback}", format.name());
        assert!(descent < 1.02 * stock, "{shown}");
        assert!(feedback < 0.6 * stock, "{shown}");
    }
}

#[test]
fn error_feedback_is_given_up_where_held_out_inputs_do_not_bear_it_out() {
    let folder = Folder::new();
    let checkpoint = checkpoint(folder.path());
    // What was observed says that all columns go together; what was held out says that they go against each other.
    let together: Vec<f32> = Numbers(5).take(40).iter().flat_map(|it| vec![*it; HIDDEN]).collect();
    let against = |it: &f32| (0..HIDDEN).map(|column| if column % 2 == 0 { *it } else { -it }).collect::<Vec<_>>();
    let against: Vec<f32> = Numbers(6).take(40).iter().flat_map(against).collect();
    let plan = |codes| Plan { overrides: vec![(NAME.into(), Format::Q4_K)], codes, ..Plan::new(Mix::F16) };
    let importance = importance(&together, &against);
    let fed_back = run(&checkpoint, &plan(Codes::ErrorFeedback), Some(&importance), &folder.file());
    assert_eq!(fed_back.tensors.iter().find(|it| it.name == NAME).unwrap().codes, Codes::Descent);
    let fed_back = decoded(fed_back).1;
    assert_eq!(fed_back, decoded(run(&checkpoint, &plan(Codes::Descent), Some(&importance), &folder.file())).1);
}

#[test]
fn codes_are_the_same_on_any_number_of_threads() {
    let folder = Folder::new();
    let checkpoint = checkpoint(folder.path());
    let importance = importance(&inputs(HIDDEN, 400, 1), &inputs(HIDDEN, 100, 2));
    for codes in Codes::ALL {
        let plan = Plan { codes, ..Plan::new(Mix::Q4_K_M) };
        let digest = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let encoded = pool.install(|| run(&checkpoint, &plan, Some(&importance), &folder.file()));
            Gguf::open(&encoded.draft.publish().unwrap()).unwrap().file_sha256()
        };
        assert_eq!(digest(1), digest(3), "{}", codes.name());
    }
}

#[test]
fn stock_codes_do_not_look_at_moments() {
    let folder = Folder::new();
    let checkpoint = checkpoint(folder.path());
    let with = importance(&inputs(HIDDEN, 400, 1), &inputs(HIDDEN, 100, 2));
    let without = Importance { tensors: with.tensors.clone(), ..Importance::default() };
    let plan = Plan::new(Mix::Q4_K_S);
    let bytes = |importance| decoded(run(&checkpoint, &plan, Some(importance), &folder.file())).1;
    assert_eq!(bytes(&with), bytes(&without));
}

#[test]
fn moments_that_do_not_fit_are_refused() {
    let folder = Folder::new();
    let checkpoint = checkpoint(folder.path());
    let mut wrong = importance(&inputs(HIDDEN, 10, 1), &inputs(HIDDEN, 10, 2));
    wrong.moments.insert(NAME.into(), moments(3, &inputs(3, 10, 1)));
    let provenance = provenance(&checkpoint, None);
    let plan = Plan { codes: Codes::ErrorFeedback, ..Plan::new(Mix::Q4_K_M) };
    let result = quantize(&checkpoint, &[], &plan, Some(&wrong), &provenance, &folder.file(), &mut |_, _| {});
    let error = result.unwrap_err().to_string();
    assert_eq!(error, format!("importance of tensor `{NAME}`: expected 256 columns, found 3"));
    let error = Moments::new("m", 2, Arc::new(vec![1.0; 3])).unwrap_err().to_string();
    assert_eq!(error, "moments of `m`: expected 2 by 2 products, found 3");
}

#[test]
fn the_length_of_a_file_is_known_before_it_is_written() {
    let folder = Folder::new();
    let checkpoint = checkpoint(folder.path());
    for mix in [Mix::F16, Mix::Q8_0, Mix::Q4_K_M, Mix::Q2_K] {
        let plan = Plan::new(mix);
        let expected = file_bytes(&checkpoint, &plan, false, &provenance(&checkpoint, None)).unwrap();
        let path = run(&checkpoint, &plan, None, &folder.file()).draft.publish().unwrap();
        assert_eq!(std::fs::metadata(path).unwrap().len(), expected, "{}", mix.name());
    }
}

#[test]
fn plans_fit_their_budget_and_lose_less_than_the_recipe_of_that_size() {
    let folder = Folder::new();
    let checkpoint = checkpoint(folder.path());
    let sensitivities = Sensitivities::measure(&checkpoint, &[], None, Codes::Stock, &mut |_, _| {}).unwrap();
    assert_eq!(sensitivities.tensors.len(), 1 + 2 * 7);
    let provenance = provenance(&checkpoint, None);
    let fit = |plan: &Plan, budget| sensitivities.fit(&checkpoint, plan, false, &provenance, budget);
    let loss = |plan: &Plan| -> f64 {
        let allocations = plan.allocate(&checkpoint.dimensions, false).unwrap();
        let of = |it: &fsq_quantizer::Sensitivity| {
            let format = allocations.iter().find(|one| one.tensor.gguf == it.tensor).unwrap().format;
            it.losses.iter().find(|it| it.format == format).unwrap().error
        };
        sensitivities.tensors.iter().map(of).sum()
    };
    for mix in [Mix::Q3_K_M, Mix::Q4_K_M, Mix::Q5_K_M, Mix::Q6_K, Mix::Q8_0] {
        let recipe = Plan::new(mix);
        let budget = file_bytes(&checkpoint, &recipe, false, &provenance).unwrap();
        let plan = fit(&recipe, budget).unwrap();
        let path = run(&checkpoint, &plan, None, &folder.file()).draft.publish().unwrap();
        let written = std::fs::metadata(path).unwrap().len();
        assert!(written <= budget, "{}: {written} of {budget}", mix.name());
        assert!(loss(&plan) <= loss(&recipe), "{}: {} {}", mix.name(), loss(&plan), loss(&recipe));
    }
    let error = fit(&Plan::new(Mix::Q4_K_M), 1000).unwrap_err().to_string();
    assert!(error.starts_with("size of the file: expected at least "), "{error}");
    // What a user fixed stays.
    let fixed = Plan { overrides: vec![("blk.1.attn_q".into(), Format::Q2_K)], ..Plan::new(Mix::Q4_K_M) };
    let plan = fit(&fixed, 1 << 30).unwrap();
    let allocations = plan.allocate(&checkpoint.dimensions, false).unwrap();
    let format = |name: &str| allocations.iter().find(|it| it.tensor.gguf == name).unwrap().format;
    assert_eq!((format("blk.1.attn_q.weight"), format("blk.0.attn_q.weight")), (Format::Q2_K, Format::F16));
}

#[test]
fn a_tensor_that_counts_more_gets_more_bits() {
    let folder = Folder::new();
    let checkpoint = checkpoint(folder.path());
    let mut sensitivities = Sensitivities::measure(&checkpoint, &[], None, Codes::Stock, &mut |_, _| {}).unwrap();
    let provenance = provenance(&checkpoint, None);
    let bits = |sensitivities: &Sensitivities| {
        let plan = Plan::new(Mix::Q4_K_M);
        let budget = file_bytes(&checkpoint, &plan, false, &provenance).unwrap();
        let plan = sensitivities.fit(&checkpoint, &plan, false, &provenance, budget).unwrap();
        let allocations = plan.allocate(&checkpoint.dimensions, false).unwrap();
        allocations.iter().find(|it| it.tensor.gguf == NAME).unwrap().format.bits_per_weight()
    };
    let before = bits(&sensitivities);
    sensitivities.weigh(NAME, 1000.0);
    assert!(bits(&sensitivities) > before);
    sensitivities.weigh(NAME, 1e-6);
    assert!(bits(&sensitivities) < before);
}

#[test]
fn plans_can_be_read_changed_and_given_back() {
    let folder = Folder::new();
    let checkpoint = checkpoint(folder.path());
    let sensitivities = Sensitivities::measure(&checkpoint, &[], None, Codes::Stock, &mut |_, _| {}).unwrap();
    let allocations = Plan::new(Mix::Q4_K_M).allocate(&checkpoint.dimensions, false).unwrap();
    let text = plan_text(&allocations, Some(&sensitivities));
    let path = folder.path().join("plan.toml");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        read_plan(&path)
    };
    let plan = Plan { overrides: read(&text).unwrap(), ..Plan::new(Mix::F16) };
    let formats = |plan: &Plan| -> Vec<Format> {
        plan.allocate(&checkpoint.dimensions, false).unwrap().iter().map(|it| it.format).collect()
    };
    assert_eq!(formats(&plan), allocations.iter().map(|it| it.format).collect::<Vec<_>>());
    let line = format!("{NAME:?} = \"Q4_K\" # bits 4.50, loss ");
    assert!(text.contains(&line), "{text}");
    let changed = read(&text.replace(&format!("{NAME:?} = \"Q4_K\""), &format!("{NAME:?} = \"q6_k\""))).unwrap();
    assert!(changed.contains(&(NAME.into(), Format::Q6_K)));

    let error = |text: &str| read(text).unwrap_err().to_string();
    let known = "tensor `a`: expected one of F32, F16,";
    assert!(error("[tensors]\na = \"Q9\"").contains(known), "{}", error("[tensors]\na = \"Q9\""));
    assert!(error("[tensor]\n").contains("unknown field"));
    assert!(error("[tensors\n").contains("plan.toml: "));
    let unknown = Plan { overrides: read("[tensors]\n\"blk.9.attn_q\" = \"Q8_0\"").unwrap(), ..Plan::new(Mix::F16) };
    let error = unknown.allocate(&checkpoint.dimensions, false).unwrap_err();
    assert!(matches!(error, QuantizeError::UnknownTensor { .. }), "{error}");
}
