//! A BM25 index over short texts: what the worlds that answer searches search.
//!
//! Knows nothing of what the texts say, nor how they are cut into words: the tokenizer is the world's.

use bm25::{Embedder, EmbedderBuilder, Embedding, Scorer, Tokenizer};

/// BM25's saturation and length normalisation, as in the multi-hop search literature.
const B: f32 = 0.4;
const K1: f32 = 0.9;

/// Texts by their words; a text's number is its place among those that were indexed.
pub(crate) struct Index<T: Tokenizer> {
    embedder: Embedder<u32, T>,
    scorer: Scorer<usize>,
}

impl<T: Tokenizer + Default> Index<T> {
    /// Indexes some texts of `words_mean` words on average.
    pub(crate) fn new<'a>(texts: impl IntoIterator<Item = &'a str>, words_mean: f32) -> Self {
        let embedder = EmbedderBuilder::<u32, T>::with_avgdl(words_mean).b(B).k1(K1).build();
        let mut scorer = Scorer::<usize>::new();
        for (index, text) in texts.into_iter().enumerate() {
            scorer.upsert(&index, embedder.embed(text));
        }
        Self { embedder, scorer }
    }

    /// The best texts for some words, best first, `count` at most; ties go to the text that was indexed first.
    pub(crate) fn search(&self, words: &str, count: usize) -> Vec<usize> {
        let query: Embedding<u32> = self.embedder.embed(words);
        let mut scored: Vec<(usize, f32)> =
            self.scorer.matches(&query).into_iter().map(|it| (it.id, it.score)).collect();
        scored.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        scored.into_iter().take(count).map(|it| it.0).collect()
    }
}
