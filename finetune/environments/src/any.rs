//! The worlds in one list: ours by name, and a user's own.

use crate::{Countdown, DagMath, DocHop, Environment, ProcessWorld, SearchWorld, SlipGrid};

/// Any world; [`in_world!`](crate::in_world) runs the same code in each.
pub enum AnyWorld {
    /// Join three numbers until the goal is left.
    Countdown,
    /// Follow relations through a corpus that only answers searches.
    DocHop,
    /// Work out a quantity that others define.
    DagMath,
    /// Fetch a key and reach a door on slippery ground.
    SlipGrid,
    /// A user's program.
    Process(Box<ProcessWorld>),
    /// A user's folder of texts.
    Search(Box<SearchWorld>),
}

/// Runs an expression with a name for a world of its own type, whichever it is.
#[macro_export]
macro_rules! in_world {
    ($world:expr, $it:ident => $body:expr) => {
        match $world {
            $crate::AnyWorld::Countdown => {
                let $it = &$crate::Countdown;
                $body
            }
            $crate::AnyWorld::DocHop => {
                let $it = &$crate::DocHop;
                $body
            }
            $crate::AnyWorld::DagMath => {
                let $it = &$crate::DagMath;
                $body
            }
            $crate::AnyWorld::SlipGrid => {
                let $it = &$crate::SlipGrid;
                $body
            }
            $crate::AnyWorld::Process(world) => {
                let $it = &**world;
                $body
            }
            $crate::AnyWorld::Search(world) => {
                let $it = &**world;
                $body
            }
        }
    };
}

impl AnyWorld {
    /// The names of ours, in the order in which run files list their shares.
    pub const NAMES: [&'static str; 4] = [Countdown::NAME, DocHop::NAME, DagMath::NAME, SlipGrid::NAME];

    /// One of ours.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            Countdown::NAME => Some(Self::Countdown),
            DocHop::NAME => Some(Self::DocHop),
            DagMath::NAME => Some(Self::DagMath),
            SlipGrid::NAME => Some(Self::SlipGrid),
            _ => None,
        }
    }

    /// As reports name it.
    #[must_use]
    pub fn name(&self) -> &str {
        in_world!(self, it => it.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_world() {
        for name in AnyWorld::NAMES {
            assert_eq!(AnyWorld::named(name).unwrap().name(), name);
        }
        assert!(AnyWorld::named("chess").is_none());
    }
}
