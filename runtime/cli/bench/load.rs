//! What a measurement costs in memory, and who else works on the machine meanwhile. Knows no policies.
//!
//! Linux tells both in `/proc`; elsewhere they are not available.

use std::time::Instant;

/// Ticks of `/proc` in a second, on every Linux that this runs on (`USER_HZ`).
const TICKS_PER_S: f64 = 100.0;

/// From the beginning of a measurement to its end.
pub(super) struct Watch {
    begun: Instant,
    before: Option<Ticks>,
    /// Whether the largest resident memory counts from the beginning.
    is_reset: bool,
}

/// Time that the processors worked, for everyone and for this process.
struct Ticks {
    all: f64,
    own: f64,
}

impl Watch {
    pub(super) fn begin() -> Self {
        // "5" sets the largest resident memory back to the present one.
        let is_reset = std::fs::write("/proc/self/clear_refs", "5").is_ok();
        Self { begun: Instant::now(), before: Ticks::now(), is_reset }
    }

    /// Cores that others used, and the largest resident memory in bytes.
    pub(super) fn end(self) -> (Option<f64>, Option<u64>) {
        let seconds = self.begun.elapsed().as_secs_f64();
        let others = self.before.zip(Ticks::now()).map(|(before, after)| {
            let foreign = (after.all - before.all) - (after.own - before.own);
            (foreign / TICKS_PER_S / seconds).max(0.0)
        });
        (others, resident_bytes_max().filter(|_| self.is_reset))
    }
}

impl Ticks {
    fn now() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/stat").ok()?;
        let own = std::fs::read_to_string("/proc/self/stat").ok()?;
        Some(Self { all: busy_ticks(&stat)?, own: own_ticks(&own)? })
    }
}

/// `cpu user nice system idle iowait irq softirq steal …`: all but idling and waiting.
fn busy_ticks(stat: &str) -> Option<f64> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let ticks: Vec<f64> = fields.take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some(ticks.iter().sum::<f64>() - idle)
}

/// User and system time are the 14th and 15th field; the second, a name in parentheses, may hold anything.
fn own_ticks(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let user: f64 = fields.nth(11)?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn resident_bytes_max() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|it| it.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_proc_are_found() {
        assert_eq!(busy_ticks("cpu  100 5 50 900 20 1 2 3 0 0\ncpu0 1 2\n"), Some(161.0));
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 30 0 0 20 0 3 0 100 1 1";
        assert_eq!(own_ticks(stat), Some(280.0));
        assert_eq!(busy_ticks("intr 1"), None);
    }
}
