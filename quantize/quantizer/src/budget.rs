//! Formats under a budget of bytes: the least sum of costs that fits. Knows no tensor and no file.
//!
//! A multiple-choice knapsack, solved item by item: of all ways to have the items so far, those are kept that no other
//! undercuts in both bytes and cost, and of these one for each small step of bytes.

/// One way to have an item.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Choice {
    /// What it takes.
    pub(crate) n_bytes: u64,
    /// What it loses; the sum of these is made small.
    pub(crate) cost: f64,
}

/// Steps of bytes that a budget is looked at in: with hundreds of items the result is within some parts in a thousand
/// of the best.
const STEPS: u64 = 4096;

/// A way to have some items.
#[derive(Clone, Copy)]
struct State {
    n_bytes: u64,
    cost: f64,
    /// The way to have the items before the last one.
    before: usize,
    /// The choice of the last one.
    choice: usize,
}

/// One choice for each item, by its place among the item's choices, such that their bytes fit the budget and their
/// costs are small; `None` where not even the smallest fit, or an item has no choice.
pub(crate) fn choose(items: &[Vec<Choice>], budget_bytes: u64) -> Option<Vec<usize>> {
    let smallest: Vec<u64> = items.iter().map(|it| it.iter().map(|it| it.n_bytes).min()).collect::<Option<_>>()?;
    let least = smallest.iter().try_fold(0u64, |sum, it| sum.checked_add(*it))?;
    // Beyond the largest of everything more bytes change nothing.
    let largest = items.iter().filter_map(|it| it.iter().map(|it| it.n_bytes).max()).fold(0u64, u64::saturating_add);
    let budget = budget_bytes.min(largest);
    let step = (budget.checked_sub(least)? / STEPS).max(1);
    let mut layers = vec![vec![State { n_bytes: 0, cost: 0.0, before: 0, choice: 0 }]];
    let mut rest = least;
    for (choices, smallest) in items.iter().zip(smallest) {
        rest -= smallest;
        let last = layers.last().map_or(&[][..], Vec::as_slice);
        let next = last.iter().enumerate().flat_map(|(before, state)| {
            let with = move |(choice, it): (usize, &Choice)| State {
                n_bytes: state.n_bytes + it.n_bytes,
                cost: state.cost + it.cost,
                before,
                choice,
            };
            choices.iter().enumerate().map(with)
        });
        let fitting = next.filter(|it| it.n_bytes + rest <= budget).collect();
        layers.push(undercut_by_none(fitting, step));
    }
    // The last way of a layer costs least.
    let mut place = layers.last()?.len().checked_sub(1)?;
    let mut chosen = vec![0; items.len()];
    for (layer, chosen) in layers[1..].iter().zip(&mut chosen).rev() {
        (place, *chosen) = (layer[place].before, layer[place].choice);
    }
    Some(chosen)
}

/// The ways that no other undercuts in bytes and cost, by bytes; within a step of bytes only the cheapest.
fn undercut_by_none(mut states: Vec<State>, step: u64) -> Vec<State> {
    states.sort_by(|a, b| a.n_bytes.cmp(&b.n_bytes).then(a.cost.total_cmp(&b.cost)));
    let mut kept: Vec<State> = Vec::new();
    for state in states {
        let Some(last) = kept.last().copied() else {
            kept.push(state);
            continue;
        };
        if state.cost >= last.cost {
            continue;
        }
        // The first stays, so that the smallest way is never lost.
        if kept.len() > 1 && state.n_bytes / step == last.n_bytes / step {
            kept.pop();
        }
        kept.push(state);
    }
    kept
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

    use super::*;

    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 40) as f64 / f64::from(1u32 << 24)
        }
    }

    /// Items like tensors: each a few formats, whose cost falls by about four for each bit.
    fn items(n: usize, numbers: &mut Numbers) -> Vec<Vec<Choice>> {
        let item = |numbers: &mut Numbers| {
            let (size, weight) = (1.0 + 9.0 * numbers.next(), 10f64.powf(3.0 * numbers.next()));
            let choice = |bits: f64| Choice {
                n_bytes: (1000.0 * size * bits) as u64,
                cost: weight * 4f64.powf(-bits) * (0.8 + 0.4 * numbers.next()),
            };
            [3.4, 4.25, 4.5, 5.5, 6.6, 8.5].map(choice).to_vec()
        };
        (0..n).map(|_| item(numbers)).collect()
    }

    fn cost(items: &[Vec<Choice>], chosen: &[usize]) -> f64 {
        chosen.iter().zip(items).map(|(it, of)| of[*it].cost).sum()
    }

    fn bytes(items: &[Vec<Choice>], chosen: &[usize]) -> u64 {
        chosen.iter().zip(items).map(|(it, of)| of[*it].n_bytes).sum()
    }

    /// The least cost of all combinations that fit.
    fn exhaustive(items: &[Vec<Choice>], budget: u64) -> f64 {
        match items {
            [] => 0.0,
            [first, rest @ ..] => first
                .iter()
                .filter(|it| it.n_bytes <= budget)
                .map(|it| it.cost + exhaustive(rest, budget - it.n_bytes))
                .fold(f64::INFINITY, f64::min),
        }
    }

    #[test]
    fn the_budget_holds_and_the_cost_is_near_the_least() {
        let mut numbers = Numbers(1);
        for _ in 0..200 {
            let items = items(5, &mut numbers);
            let (low, high) = (bytes(&items, &[0; 5]), bytes(&items, &[5; 5]));
            let budget = low + ((high - low) as f64 * numbers.next()) as u64;
            let chosen = choose(&items, budget).unwrap();
            assert!(bytes(&items, &chosen) <= budget);
            let (found, least) = (cost(&items, &chosen), exhaustive(&items, budget));
            assert!(found <= 1.01 * least, "{found} {least}");
        }
    }

    #[test]
    fn it_is_never_worse_than_one_format_for_all() {
        let mut numbers = Numbers(2);
        for _ in 0..20 {
            let items = items(60, &mut numbers);
            for format in 0..6 {
                let all = vec![format; 60];
                let chosen = choose(&items, bytes(&items, &all)).unwrap();
                assert!(cost(&items, &chosen) <= cost(&items, &all), "{format}");
                assert!(bytes(&items, &chosen) <= bytes(&items, &all));
            }
        }
    }

    #[test]
    fn ends_of_the_range_have_their_answers() {
        let items = items(7, &mut Numbers(3));
        let (low, high) = (bytes(&items, &[0; 7]), bytes(&items, &[5; 7]));
        assert_eq!(choose(&items, low), Some(vec![0; 7]));
        assert_eq!(choose(&items, low - 1), None);
        assert_eq!(choose(&items, high), Some(vec![5; 7]));
        assert_eq!(choose(&items, u64::MAX), Some(vec![5; 7]));
        assert_eq!(choose(&[], 0), Some(vec![]));
        assert_eq!(choose(&[vec![]], 100), None);
        // More bytes for nothing are not taken.
        let choices = [(10, 1.0), (20, 1.0), (30, 2.0)].map(|(n_bytes, cost)| Choice { n_bytes, cost });
        assert_eq!(choose(&[choices.to_vec()], 100), Some(vec![0]));
    }
}
