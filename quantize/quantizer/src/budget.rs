//! Formats under a budget of bytes: the least sum of costs that fits. Knows no tensor and no file.
//!
//! A multiple-choice knapsack. Steps along the lower hull of each item's bytes and costs are taken in the order of what
//! they gain per byte, as the Lagrangian relaxation would, for as long as they fit; what is left over is spent by
//! single changes and by pairs of them. The result is the best there is but for less than one step.

/// One way to have an item.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Choice {
    /// What it takes.
    pub(crate) n_bytes: u64,
    /// What it loses; the sum of these is made small.
    pub(crate) cost: f64,
}

/// One choice for each item, by its place among the item's choices, such that their bytes fit the budget and their
/// costs are small; `None` where not even the smallest fit, or an item has no choice.
pub(crate) fn choose(items: &[Vec<Choice>], budget_bytes: u64) -> Option<Vec<usize>> {
    let smallest = |choices: &Vec<Choice>| {
        (0..choices.len()).min_by(|a, b| {
            let (a, b) = (choices[*a], choices[*b]);
            a.n_bytes.cmp(&b.n_bytes).then(a.cost.total_cmp(&b.cost))
        })
    };
    let mut chosen: Vec<usize> = items.iter().map(smallest).collect::<Option<_>>()?;
    let used =
        |chosen: &[usize]| chosen.iter().zip(items).try_fold(0u64, |sum, (it, of)| sum.checked_add(of[*it].n_bytes));
    let mut left = budget_bytes.checked_sub(used(&chosen)?)?;
    for step in steps(items, &chosen) {
        let (from, to) = (items[step.item][chosen[step.item]], items[step.item][step.to]);
        // A step that was passed over for its bytes makes those after it of the same item larger.
        let more = to.n_bytes.saturating_sub(from.n_bytes);
        if more <= left && to.cost < from.cost {
            chosen[step.item] = step.to;
            left -= more;
        }
    }
    spend(items, &mut chosen, left);
    Some(chosen)
}

/// A step of one item along its hull.
struct Step {
    item: usize,
    to: usize,
    gain_per_byte: f64,
}

/// All steps, those that gain most per byte first; the steps of one item come in order, because a hull is convex.
fn steps(items: &[Vec<Choice>], first: &[usize]) -> Vec<Step> {
    let mut steps = Vec::new();
    for (item, choices) in items.iter().enumerate() {
        let mut at = first[item];
        loop {
            let from = choices[at];
            let slope = |it: &Choice| (from.cost - it.cost) / (it.n_bytes - from.n_bytes) as f64;
            let better = |it: &&(usize, &Choice)| it.1.n_bytes > from.n_bytes && it.1.cost < from.cost;
            let next =
                choices.iter().enumerate().filter(|it| better(&it)).max_by(|a, b| slope(a.1).total_cmp(&slope(b.1)));
            let Some((to, choice)) = next else { break };
            steps.push(Step { item, to, gain_per_byte: slope(choice) });
            at = to;
        }
    }
    steps.sort_by(|a, b| b.gain_per_byte.total_cmp(&a.gain_per_byte));
    steps
}

/// Rounds of exchanges at most: each takes the best there is.
const EXCHANGES_MAX: usize = 200;

/// Changes one item, or one for more bytes and another for less, for as long as the cost becomes less.
fn spend(items: &[Vec<Choice>], chosen: &mut [usize], mut left: u64) {
    for _ in 0..EXCHANGES_MAX {
        let changes: Vec<(usize, usize, i64, f64)> = items
            .iter()
            .enumerate()
            .flat_map(|(item, choices)| {
                let from = choices[chosen[item]];
                let change = move |(to, it): (usize, &Choice)| {
                    (item, to, it.n_bytes as i64 - from.n_bytes as i64, it.cost - from.cost)
                };
                choices.iter().enumerate().map(change).filter(|it| it.2 != 0 || it.3 < 0.0)
            })
            .collect();
        let room = left.min(i64::MAX as u64) as i64;
        let mut best: Option<(f64, usize, Option<usize>)> = None;
        let mut offer = |gain: f64, first: usize, second: Option<usize>| {
            if gain < best.map_or(-1e-12, |it| it.0) {
                best = Some((gain, first, second));
            }
        };
        for (first, up) in changes.iter().enumerate().filter(|it| it.1.3 < 0.0) {
            if up.2 <= room {
                offer(up.3, first, None);
            }
            for (second, down) in changes.iter().enumerate().filter(|it| it.1.0 != up.0 && it.1.2 < 0) {
                if up.2 + down.2 <= room {
                    offer(up.3 + down.3, first, Some(second));
                }
            }
        }
        let Some((_, first, second)) = best else { return };
        let taken: Vec<_> = std::iter::once(first).chain(second).map(|it| changes[it]).collect();
        taken.iter().for_each(|(item, to, ..)| chosen[*item] = *to);
        // Together: the first of a pair may take more than is left before the second gives it back.
        left = left.saturating_add_signed(-taken.iter().map(|it| it.2).sum::<i64>());
    }
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
            assert!(found <= 1.2 * least, "{found} {least}");
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
