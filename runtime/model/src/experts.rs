//! Which experts each token takes, and with what weight. Knows no matrices.

use fsq_checkpoint::Experts;

/// The tokens that one expert serves.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Served {
    /// Rows of the batch, ascending.
    pub(crate) rows: Vec<usize>,
    /// What each row's result is multiplied by.
    pub(crate) weights: Vec<f32>,
}

/// For each expert, in order, the rows that chose it: of the softmax of its router's logits, `[rows, experts]`, a row
/// takes the largest, among equals the first.
pub(crate) fn route(logits: &[f32], experts: &Experts) -> Vec<Served> {
    let mut served: Vec<Served> = std::iter::repeat_with(Served::default).take(experts.n).collect();
    for (row, logits) in logits.chunks_exact(experts.n).enumerate() {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let odds: Vec<f32> = logits.iter().map(|it| (it - largest).exp()).collect();
        let mut order: Vec<usize> = (0..experts.n).collect();
        order.sort_by(|left, right| odds[*right].total_cmp(&odds[*left]));
        order.truncate(experts.n_used);
        let total: f32 = if experts.normalized { order.iter().map(|it| odds[*it]).sum() } else { odds.iter().sum() };
        for expert in order {
            served[expert].rows.push(row);
            served[expert].weights.push(odds[expert] / total);
        }
    }
    served
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_take_the_largest_and_their_weights_add_up() {
        let mut experts = Experts { n: 3, n_used: 2, intermediate: 8, normalized: true };
        let logits = [0.0, 1.0, 2.0, 1.0, 1.0, 1.0, 5.0, 0.0, -5.0];
        let served = route(&logits, &experts);
        assert_eq!(served.iter().map(|it| it.rows.clone()).collect::<Vec<_>>(), [vec![1, 2], vec![0, 1, 2], vec![0]]);
        assert!((served[1].weights[0] - 1.0 / (1.0 + 1f32.exp())).abs() < 1e-6);
        assert_eq!(served[0].weights[0], 0.5);
        experts.normalized = false;
        assert!((route(&logits, &experts)[0].weights[0] - 1.0 / 3.0).abs() < 1e-6);
    }
}
