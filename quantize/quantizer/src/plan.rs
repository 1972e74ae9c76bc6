//! Which tensor gets which format; knows no weights.
//!
//! The mixes follow `llama_tensor_get_type_impl` and `tensor_type_fallback` in llama.cpp's `src/llama-quant.cpp` for
//! policies of the Llama kind, dense or with many experts. There is no mix of `MXFP4`: its own is for mixtures of
//! experts. Overrides may ask for it.

use fsq_blocks::Format;
use fsq_checkpoint::{Dimensions, TensorName, tensor_names};

use crate::{Codes, QuantizeError};

/// A named recipe of formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[expect(non_camel_case_types, missing_docs, reason = "the names everyone uses for these recipes")]
pub enum Mix {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2_K,
    Q2_K_S,
    Q3_K_S,
    Q3_K_M,
    Q3_K_L,
    Q4_K_S,
    Q4_K_M,
    Q5_K_S,
    Q5_K_M,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
}

/// Name, llama.cpp's number of the file type, and the format that most tensors get.
const MIXES: &[(Mix, &str, u32, Format)] = &[
    (Mix::F32, "F32", 0, Format::F32),
    (Mix::F16, "F16", 1, Format::F16),
    (Mix::BF16, "BF16", 32, Format::BF16),
    (Mix::Q8_0, "Q8_0", 7, Format::Q8_0),
    (Mix::Q4_0, "Q4_0", 2, Format::Q4_0),
    (Mix::Q4_1, "Q4_1", 3, Format::Q4_1),
    (Mix::Q5_0, "Q5_0", 8, Format::Q5_0),
    (Mix::Q5_1, "Q5_1", 9, Format::Q5_1),
    (Mix::Q2_K, "Q2_K", 10, Format::Q2_K),
    (Mix::Q2_K_S, "Q2_K_S", 21, Format::Q2_K),
    (Mix::Q3_K_S, "Q3_K_S", 11, Format::Q3_K),
    (Mix::Q3_K_M, "Q3_K_M", 12, Format::Q3_K),
    (Mix::Q3_K_L, "Q3_K_L", 13, Format::Q3_K),
    (Mix::Q4_K_S, "Q4_K_S", 14, Format::Q4_K),
    (Mix::Q4_K_M, "Q4_K_M", 15, Format::Q4_K),
    (Mix::Q5_K_S, "Q5_K_S", 16, Format::Q5_K),
    (Mix::Q5_K_M, "Q5_K_M", 17, Format::Q5_K),
    (Mix::Q6_K, "Q6_K", 18, Format::Q6_K),
    (Mix::IQ4_NL, "IQ4_NL", 25, Format::IQ4_NL),
    (Mix::IQ4_XS, "IQ4_XS", 30, Format::IQ4_XS),
];

impl Mix {
    fn row(self) -> &'static (Mix, &'static str, u32, Format) {
        // Every variant has a row; a test looks each one up.
        MIXES.iter().find(|it| it.0 == self).unwrap_or(&MIXES[0])
    }

    /// Every mix, smallest loss first is not promised.
    pub fn all() -> impl Iterator<Item = Mix> {
        MIXES.iter().map(|it| it.0)
    }

    /// The name, such as `Q4_K_M`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// By name, in capitals or not; `q3_k`, `q4_k` and `q5_k` mean the medium one.
    pub fn from_name(name: &str) -> Option<Self> {
        let medium = ["q3_k", "q4_k", "q5_k"].iter().any(|it| it.eq_ignore_ascii_case(name));
        let full = if medium { format!("{name}_M") } else { name.to_owned() };
        MIXES.iter().find(|it| it.1.eq_ignore_ascii_case(&full)).map(|it| it.0)
    }

    /// llama.cpp's number of the file type, for `general.file_type`.
    pub fn file_type(self) -> u32 {
        self.row().2
    }

    /// The format that most tensors get.
    pub fn format(self) -> Format {
        self.row().3
    }
}

/// What to make of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// `general.name`; the checkpoint's folder when `None`.
    pub name: Option<String>,
    /// The recipe.
    pub mix: Mix,
    /// Formats of single matrices, over the recipe: the name in the GGUF file, with or without `.weight`, in which `*`
    /// stands for any run of characters. The last that matches counts.
    pub overrides: Vec<(String, Format)>,
    /// Give every matrix the recipe's main format.
    pub pure: bool,
    /// How codes are chosen.
    pub codes: Codes,
}

/// The format of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// Its names and shape.
    pub tensor: TensorName,
    /// What it gets.
    pub format: Format,
    /// What the recipe says; another format when its rows are not whole blocks of it.
    pub wanted: Format,
}

impl Plan {
    /// A recipe and nothing else.
    pub fn new(mix: Mix) -> Self {
        Self { name: None, mix, overrides: Vec::new(), pure: false, codes: Codes::Stock }
    }

    /// Whether an override says what a tensor gets.
    pub(crate) fn overrides_tensor(&self, gguf: &str) -> bool {
        self.overrides.iter().any(|(pattern, _)| matches(pattern, gguf))
    }

    /// The format of every tensor, in the order of the file. Some recipes choose otherwise when they are `weighted`:
    /// when importance will guide the encoding.
    ///
    /// # Errors
    /// When an override names no matrix, or a format that its rows are not whole blocks of.
    pub fn allocate(&self, dimensions: &Dimensions, weighted: bool) -> Result<Vec<Allocation>, QuantizeError> {
        let tensors = tensor_names(dimensions);
        for (pattern, _) in &self.overrides {
            if !tensors.iter().any(|it| it.shape.len() > 1 && matches(pattern, &it.gguf)) {
                return Err(QuantizeError::UnknownTensor { pattern: pattern.clone() });
            }
        }
        tensors.into_iter().map(|it| self.allocation(dimensions, weighted, it)).collect()
    }

    fn allocation(
        &self,
        dimensions: &Dimensions,
        weighted: bool,
        tensor: TensorName,
    ) -> Result<Allocation, QuantizeError> {
        let [_, columns] = tensor.shape[..] else {
            return Ok(Allocation { tensor, format: Format::F32, wanted: Format::F32 });
        };
        if tensor.precise {
            return Ok(Allocation { tensor, format: Format::F32, wanted: Format::F32 });
        }
        if let Some((_, format)) = self.overrides.iter().rev().find(|(pattern, _)| matches(pattern, &tensor.gguf)) {
            if format.row_bytes(columns).is_none() {
                return Err(QuantizeError::OverrideRow {
                    tensor: tensor.gguf,
                    format: format.name(),
                    expected: format.block_weights(),
                    found: columns,
                });
            }
            return Ok(Allocation { tensor, format: *format, wanted: *format });
        }
        let wanted =
            if self.pure { self.mix.format() } else { mixed(self.mix, dimensions, weighted, &tensor.gguf, columns) };
        Ok(Allocation { tensor, format: fallback(wanted, columns), wanted })
    }
}

/// The recipe's format of one matrix.
fn mixed(mix: Mix, dimensions: &Dimensions, weighted: bool, gguf: &str, columns: usize) -> Format {
    let format = mix.format();
    if format.block_weights() == 1 {
        return format;
    }
    let is_output = gguf == "output.weight" || (dimensions.tied && gguf == "token_embd.weight");
    if is_output {
        return if format == Format::Q8_0 || format.row_bytes(columns).is_none() { Format::Q8_0 } else { Format::Q6_K };
    }
    let (layer, n) = (layer_of(gguf), dimensions.n_layers);
    let module = gguf.strip_suffix(".weight").and_then(|it| it.rsplit('.').next()).unwrap_or("");
    let layer = layer.unwrap_or(0);
    let raised = if ["attn_v", "attn_qkv"].contains(&module) {
        raised_v(mix, dimensions, layer)
    } else if ["ffn_down", "ffn_down_exps"].contains(&module) {
        raised_down(mix, (layer, n), weighted)
    } else if module == "attn_output" {
        match mix {
            Mix::Q2_K => Some(Format::Q3_K),
            Mix::Q3_K_M => Some(Format::Q4_K),
            Mix::Q3_K_L => Some(Format::Q5_K),
            _ => None,
        }
    } else {
        None
    };
    raised.unwrap_or(format)
}

/// Whether a layer is among those that count most: the first and the last eighth, and each third between.
fn counts_more(layer: usize, n: usize) -> bool {
    layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2
}

/// What the recipe gives `attn_v` instead of its main format.
fn raised_v(mix: Mix, dimensions: &Dimensions, layer: usize) -> Option<Format> {
    let n = dimensions.n_layers;
    let many_queries = dimensions.n_heads >= 4 * dimensions.n_kv_heads;
    let raised = match mix {
        Mix::Q2_K if many_queries => Some(Format::Q4_K),
        Mix::Q2_K => Some(Format::Q3_K),
        Mix::Q2_K_S if many_queries => Some(Format::Q4_K),
        Mix::Q3_K_M if layer < 2 => Some(Format::Q5_K),
        Mix::Q3_K_M => Some(Format::Q4_K),
        Mix::Q3_K_L => Some(Format::Q5_K),
        Mix::IQ4_NL | Mix::IQ4_XS if many_queries => Some(Format::Q5_K),
        Mix::Q4_K_S if layer < 4 => Some(Format::Q5_K),
        Mix::Q4_K_M | Mix::Q5_K_M if counts_more(layer, n) => Some(Format::Q6_K),
        _ => None,
    };
    // What llama.cpp knows as 70B: eighty layers whose queries share values, so that more bits there cost next to
    // nothing.
    let is_70b = n == 80 && dimensions.n_heads != dimensions.n_kv_heads;
    match raised.unwrap_or(mix.format()) {
        Format::Q3_K | Format::Q4_K if is_70b => Some(Format::Q5_K),
        _ => raised,
    }
}

/// What the recipe gives `ffn_down` in layer `layer` of `n` instead of its main format.
fn raised_down(mix: Mix, (layer, n): (usize, usize), weighted: bool) -> Option<Format> {
    let is_early = layer < n / 8;
    match mix {
        Mix::Q2_K => Some(Format::Q3_K),
        Mix::Q2_K_S if is_early => Some(Format::Q4_K),
        Mix::Q3_K_M if layer < n / 16 => Some(Format::Q5_K),
        Mix::Q3_K_M => Some(Format::Q4_K),
        Mix::Q3_K_L => Some(Format::Q5_K),
        Mix::Q4_K_M | Mix::Q5_K_M if counts_more(layer, n) => Some(Format::Q6_K),
        Mix::IQ4_NL | Mix::IQ4_XS if is_early && !weighted => Some(Format::Q5_K),
        Mix::Q4_K_S if is_early => Some(Format::Q5_K),
        Mix::Q4_0 if is_early && weighted => Some(Format::Q4_1),
        Mix::Q5_0 if is_early && weighted => Some(Format::Q5_1),
        _ => None,
    }
}

/// The format itself, or a like one whose blocks divide the rows.
fn fallback(wanted: Format, columns: usize) -> Format {
    if wanted.row_bytes(columns).is_some() {
        return wanted;
    }
    let smaller = match wanted {
        Format::Q2_K | Format::Q3_K => Format::Q4_0,
        Format::Q4_K => Format::Q5_0,
        Format::Q5_K => Format::Q5_1,
        Format::Q6_K => Format::Q8_0,
        Format::IQ4_XS => Format::IQ4_NL,
        _ => Format::F16,
    };
    if smaller.row_bytes(columns).is_some() { smaller } else { Format::F16 }
}

fn layer_of(gguf: &str) -> Option<usize> {
    gguf.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// Whether a name, with or without its `.weight`, is that of a pattern in which `*` stands for any run of characters.
fn matches(pattern: &str, name: &str) -> bool {
    glob(pattern, name) || name.strip_suffix(".weight").is_some_and(|it| glob(pattern, it))
}

fn glob(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(place) = rest.find(part) else { return false };
        rest = &rest[place + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

    use fsq_checkpoint::{Architecture, Options};

    use super::*;

    fn dimensions(n_layers: usize, hidden: usize, tied: bool) -> Dimensions {
        Dimensions {
            architecture: Architecture::Llama,
            n_layers,
            hidden,
            intermediate: 2 * hidden,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: hidden / 4,
            vocab: 100,
            context: 128,
            rms_eps: 1e-5,
            rope_theta: 10_000.0,
            tied,
            options: Options::PLAIN,
        }
    }

    fn format_of(plan: &Plan, dimensions: &Dimensions, name: &str) -> Format {
        let allocations = plan.allocate(dimensions, false).unwrap();
        allocations.iter().find(|it| it.tensor.gguf == name).unwrap().format
    }

    /// The layers whose matrix gets another format than the recipe's main one.
    fn raised(mix: Mix, n_layers: usize, name: &str) -> Vec<(usize, Format)> {
        raised_in(mix, &dimensions(n_layers, 256, true), false, name)
    }

    fn raised_in(mix: Mix, dimensions: &Dimensions, weighted: bool, name: &str) -> Vec<(usize, Format)> {
        let allocations = Plan::new(mix).allocate(dimensions, weighted).unwrap();
        let of_layer = |it: usize| {
            let name = format!("blk.{it}.{name}.weight");
            (it, allocations.iter().find(|it| it.tensor.gguf == name).unwrap().format)
        };
        (0..dimensions.n_layers).map(of_layer).filter(|it| it.1 != mix.format()).collect()
    }

    #[test]
    fn q4_k_m_raises_the_layers_that_llama_quantize_raises() {
        let layers = |n| raised(Mix::Q4_K_M, n, "attn_v").iter().map(|it| it.0).collect::<Vec<_>>();
        assert_eq!(layers(5), [2, 4]);
        assert_eq!(layers(16), [0, 1, 4, 7, 10, 13, 14, 15]);
        assert_eq!(layers(32), [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
        assert_eq!(raised(Mix::Q4_K_M, 16, "ffn_down"), raised(Mix::Q4_K_M, 16, "attn_v"));
        assert!(raised(Mix::Q4_K_M, 16, "attn_v").iter().all(|it| it.1 == Format::Q6_K));
        for other in ["attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"] {
            assert_eq!(raised(Mix::Q4_K_M, 16, other), []);
        }
    }

    #[test]
    fn other_mixes_raise_what_llama_quantize_raises() {
        assert_eq!(raised(Mix::Q4_K_S, 16, "attn_v").len(), 4);
        assert_eq!(raised(Mix::Q4_K_S, 16, "ffn_down"), [(0, Format::Q5_K), (1, Format::Q5_K)]);
        assert_eq!(raised(Mix::Q3_K_M, 16, "attn_v")[..3], [(0, Format::Q5_K), (1, Format::Q5_K), (2, Format::Q4_K)]);
        assert_eq!(raised(Mix::Q3_K_M, 16, "ffn_down")[..2], [(0, Format::Q5_K), (1, Format::Q4_K)]);
        assert_eq!(raised(Mix::Q2_K, 4, "attn_output").len(), 4);
        assert_eq!(raised(Mix::Q8_0, 4, "attn_v"), []);
        assert_eq!(raised(Mix::Q5_K_S, 16, "attn_v"), []);
        assert_eq!(raised(Mix::Q5_K_M, 16, "ffn_down"), raised(Mix::Q4_K_M, 16, "ffn_down"));
        assert_eq!(raised(Mix::Q2_K_S, 16, "ffn_down"), [(0, Format::Q4_K), (1, Format::Q4_K)]);
        assert!(raised(Mix::Q3_K_L, 16, "attn_output").iter().all(|it| it.1 == Format::Q5_K));
        for whole in [Mix::Q3_K_S, Mix::Q4_1, Mix::Q5_1, Mix::IQ4_NL, Mix::IQ4_XS] {
            for name in ["attn_q", "attn_v", "attn_output", "ffn_up"] {
                assert_eq!(raised(whole, 16, name), [], "{} {name}", whole.name());
            }
        }
    }

    #[test]
    fn importance_moves_the_early_ffn_down() {
        let sizes = dimensions(16, 256, true);
        let early = |mix, weighted| raised_in(mix, &sizes, weighted, "ffn_down");
        for mix in [Mix::IQ4_NL, Mix::IQ4_XS] {
            assert_eq!(early(mix, false), [(0, Format::Q5_K), (1, Format::Q5_K)]);
            assert_eq!(early(mix, true), []);
        }
        assert_eq!((early(Mix::Q4_0, false), early(Mix::Q5_0, false)), (vec![], vec![]));
        assert_eq!(early(Mix::Q4_0, true), [(0, Format::Q4_1), (1, Format::Q4_1)]);
        assert_eq!(early(Mix::Q5_0, true), [(0, Format::Q5_1), (1, Format::Q5_1)]);
        assert_eq!((early(Mix::Q4_1, true), early(Mix::Q5_1, true)), (vec![], vec![]));
        assert_eq!(early(Mix::Q4_K_M, false), early(Mix::Q4_K_M, true));
    }

    #[test]
    fn values_that_many_queries_share_get_more_bits() {
        let shared = |n_layers| Dimensions { n_kv_heads: 1, ..dimensions(n_layers, 256, true) };
        for mix in [Mix::IQ4_NL, Mix::IQ4_XS] {
            assert_eq!(raised_in(mix, &shared(2), true, "attn_v"), [(0, Format::Q5_K), (1, Format::Q5_K)]);
        }
        assert_eq!(raised_in(Mix::Q2_K_S, &shared(2), true, "attn_v").len(), 2);
        let lowest = |mix, sizes: Dimensions| {
            let raised = raised_in(mix, &sizes, false, "attn_v");
            raised.iter().filter(|it| it.1 == Format::Q5_K).count()
        };
        // Eighty layers with shared values are a 70B, where nothing of `attn_v` stays at three or four bits.
        assert_eq!(lowest(Mix::Q3_K_S, shared(80)), 80);
        assert_eq!(lowest(Mix::Q4_K_M, shared(80)) + raised(Mix::Q4_K_M, 80, "attn_output").len(), 40);
        assert_eq!(lowest(Mix::Q3_K_S, Dimensions { n_kv_heads: 4, ..shared(80) }), 0);
    }

    #[test]
    fn embeddings_and_output_keep_their_bits() {
        let (tied, untied) = (dimensions(2, 256, true), dimensions(2, 256, false));
        let plan = Plan::new(Mix::Q4_K_M);
        assert_eq!(format_of(&plan, &tied, "token_embd.weight"), Format::Q6_K);
        assert_eq!(format_of(&plan, &untied, "token_embd.weight"), Format::Q4_K);
        assert_eq!(format_of(&plan, &untied, "output.weight"), Format::Q6_K);
        assert_eq!(format_of(&Plan::new(Mix::Q8_0), &tied, "token_embd.weight"), Format::Q8_0);
        assert_eq!(format_of(&Plan::new(Mix::F16), &tied, "token_embd.weight"), Format::F16);
        assert_eq!(format_of(&plan, &tied, "blk.0.attn_norm.weight"), Format::F32);
        let pure = Plan { pure: true, ..Plan::new(Mix::Q4_K_M) };
        assert_eq!(format_of(&pure, &tied, "token_embd.weight"), Format::Q4_K);
    }

    #[test]
    fn rows_that_are_not_whole_blocks_fall_back() {
        let narrow = dimensions(5, 96, true);
        let plan = Plan::new(Mix::Q4_K_M);
        assert_eq!(format_of(&plan, &narrow, "blk.0.attn_q.weight"), Format::Q5_0);
        assert_eq!(format_of(&plan, &narrow, "blk.4.attn_v.weight"), Format::Q8_0);
        assert_eq!(format_of(&plan, &narrow, "token_embd.weight"), Format::Q8_0);
        for (mix, expected) in [
            (Mix::Q2_K, Format::Q4_0),
            (Mix::Q3_K_S, Format::Q4_0),
            (Mix::Q5_K_M, Format::Q5_1),
            (Mix::Q6_K, Format::Q8_0),
            (Mix::IQ4_XS, Format::IQ4_NL),
            (Mix::IQ4_NL, Format::IQ4_NL),
            (Mix::Q4_1, Format::Q4_1),
            (Mix::Q5_1, Format::Q5_1),
        ] {
            assert_eq!(format_of(&Plan::new(mix), &narrow, "blk.0.attn_q.weight"), expected, "{}", mix.name());
            assert_eq!(format_of(&Plan::new(mix), &narrow, "token_embd.weight"), Format::Q8_0, "{}", mix.name());
        }
        assert_eq!(format_of(&plan, &dimensions(5, 24, true), "blk.0.attn_q.weight"), Format::F16);
        let told = plan.allocate(&narrow, false).unwrap();
        assert!(told.iter().any(|it| it.format == Format::Q5_0 && it.wanted == Format::Q4_K));
    }

    #[test]
    fn overrides_are_by_name_and_must_fit() {
        let sizes = dimensions(3, 256, true);
        let with = |pattern: &str, format| Plan { overrides: vec![(pattern.into(), format)], ..Plan::new(Mix::Q8_0) };
        let one = with("blk.1.attn_q", Format::Q2_K);
        assert_eq!(format_of(&one, &sizes, "blk.1.attn_q.weight"), Format::Q2_K);
        assert_eq!(format_of(&one, &sizes, "blk.2.attn_q.weight"), Format::Q8_0);
        let many = with("blk.*.ffn_*.weight", Format::Q4_K);
        assert_eq!(format_of(&many, &sizes, "blk.2.ffn_up.weight"), Format::Q4_K);
        assert_eq!(format_of(&many, &sizes, "blk.2.ffn_norm.weight"), Format::F32);
        let message = |plan: Plan, hidden| plan.allocate(&dimensions(3, hidden, true), false).unwrap_err().to_string();
        assert!(message(with("blk.7.attn_q", Format::Q2_K), 256).starts_with("override `blk.7.attn_q`: expected"));
        assert!(message(with("blk.0.attn_norm", Format::Q2_K), 256).contains("the name of a matrix"));
        assert_eq!(
            message(with("blk.0.attn_q", Format::Q2_K), 96),
            "override of tensor `blk.0.attn_q.weight`: expected rows of a multiple of 256 weights for Q2_K, found 96"
        );
    }

    #[test]
    fn mixes_are_found_by_name() {
        for mix in Mix::all() {
            assert_eq!(Mix::from_name(&mix.name().to_lowercase()), Some(mix));
            assert_eq!(mix.row().0, mix);
        }
        assert_eq!(Mix::from_name("q4_k"), Some(Mix::Q4_K_M));
        assert_eq!(Mix::from_name("q9"), None);
    }

    #[test]
    fn patterns_match_whole_names() {
        assert!(glob("a*c", "abc") && glob("*", "") && glob("a*b*c", "axxbyc") && glob("abc", "abc"));
        assert!(!glob("a*c", "abcd") && !glob("abc", "abcd") && !glob("a*b*c", "acb") && !glob("ab*ba", "aba"));
    }
}
