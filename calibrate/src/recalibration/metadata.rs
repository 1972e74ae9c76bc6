//! Recalibration maps as the key-value metadata of a weights file, and back with every value proved.

use std::collections::BTreeMap;

use super::isotonic::Knots;
use super::venn_abers::TwoSided;
use super::{Curve, Family, RecalibrationError, RecalibrationMap, RecalibrationMaps};

/// What the keys of the map over everything begin with; those of an environment have its name and a dot after it.
const PREFIX: &str = "fsq.recalibration.";
const KEYS: [&str; 4] = ["family", "parameters", "n", "digest"];

impl RecalibrationMap {
    /// The map as metadata. Numbers are written so that reading gives the same bits back; several
    /// are separated by commas.
    pub fn to_pairs(&self) -> Vec<(String, String)> {
        self.to_pairs_under(PREFIX)
    }

    /// The map over everything in some metadata; other keys are passed over. `None` if there is no key of it.
    ///
    /// # Errors
    /// A map that is there in part, or a value no fit could have written: slopes that turn the order
    /// around, numbers that are not finite, a digest that is none.
    pub fn from_pairs<K: AsRef<str>, V: AsRef<str>>(
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Option<Self>, RecalibrationError> {
        Self::from_values_under(PREFIX, &values(pairs))
    }

    fn to_pairs_under(&self, prefix: &str) -> Vec<(String, String)> {
        let parameters: Vec<String> = self.parameters().iter().map(f64::to_string).collect();
        let values = [self.family().name().to_owned(), parameters.join(","), self.n.to_string(), self.digest.clone()];
        KEYS.iter().map(|it| format!("{prefix}{it}")).zip(values).collect()
    }

    fn from_values_under(prefix: &str, values: &Values) -> Result<Option<Self>, RecalibrationError> {
        let keys = KEYS.map(|it| format!("{prefix}{it}"));
        if keys.iter().all(|it| !values.contains_key(it)) {
            return Ok(None);
        }
        let value = |at: usize| {
            let key = &keys[at];
            values.get(key).map(String::as_str).ok_or_else(|| RecalibrationError::MissingKey { key: key.clone() })
        };
        let family = Family::from_name(value(0)?)
            .ok_or_else(|| invalid(&keys[0], "the name of a family", value(0).unwrap_or_default()))?;
        let curve = curve(family, &keys[1], value(1)?)?;
        let n = value(2)?.parse().ok().filter(|&n: &usize| n > 0 || family == Family::Identity);
        let n = n.ok_or_else(|| invalid(&keys[2], "a number of outcomes", value(2).unwrap_or_default()))?;
        let digest = value(3)?;
        if digest.len() != 64 || !digest.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(invalid(&keys[3], "64 lower-case hexadecimal digits", digest));
        }
        Ok(Some(Self { curve, n, digest: digest.to_owned() }))
    }
}

impl RecalibrationMaps {
    /// All maps as metadata, the one over everything first.
    pub fn to_pairs(&self) -> Vec<(String, String)> {
        let own = self.by_environment.iter();
        let own = own.flat_map(|(environment, map)| map.to_pairs_under(&format!("{PREFIX}{environment}.")));
        self.overall.to_pairs().into_iter().chain(own).collect()
    }

    /// The maps in some metadata; other keys are passed over. `None` if there is no key of any.
    ///
    /// # Errors
    /// As [`RecalibrationMap::from_pairs`]; also where environments have maps but everything together has none.
    pub fn from_pairs<K: AsRef<str>, V: AsRef<str>>(
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Option<Self>, RecalibrationError> {
        let values = values(pairs);
        if values.is_empty() {
            return Ok(None);
        }
        let key = || format!("{PREFIX}{}", KEYS[0]);
        let overall = RecalibrationMap::from_values_under(PREFIX, &values)?;
        let overall = overall.ok_or_else(|| RecalibrationError::MissingKey { key: key() })?;
        let mut by_environment = BTreeMap::new();
        for key in values.keys() {
            let Some((environment, _)) = key[PREFIX.len()..].rsplit_once('.') else { continue };
            let map = RecalibrationMap::from_values_under(&format!("{PREFIX}{environment}."), &values)?;
            by_environment.extend(map.map(|it| (environment.to_owned(), it)));
        }
        Ok(Some(Self { overall, by_environment }))
    }
}

/// Metadata of maps, by key.
type Values = BTreeMap<String, String>;

fn values<K: AsRef<str>, V: AsRef<str>>(pairs: impl IntoIterator<Item = (K, V)>) -> Values {
    let of_maps = pairs.into_iter().filter(|it| it.0.as_ref().starts_with(PREFIX));
    of_maps.map(|it| (it.0.as_ref().to_owned(), it.1.as_ref().to_owned())).collect()
}

fn invalid(key: &str, expected: &'static str, found: &str) -> RecalibrationError {
    const CHARACTERS_MAX: usize = 60;
    RecalibrationError::InvalidValue {
        key: key.to_owned(),
        expected,
        found: found.chars().take(CHARACTERS_MAX).collect(),
    }
}

fn curve(family: Family, key: &str, written: &str) -> Result<Curve, RecalibrationError> {
    let expected = match family {
        Family::Identity => "no parameters",
        Family::Shrinkage => "a weight and a base rate in 0..=1",
        Family::Temperature => "one slope, not negative",
        Family::Platt => "a slope, not negative, and an offset",
        Family::Beta => "two slopes, not negative, and an offset",
        Family::Isotonic => "ascending places and as many values that never descend, in 0..=1",
        Family::VennAbers => "ascending places, as many lower and as many upper probabilities, in 0..=1",
    };
    let wrong = || invalid(key, expected, written);
    let numbers: Result<Vec<f64>, _> = written.split(',').filter(|_| !written.is_empty()).map(str::parse).collect();
    let numbers = numbers.ok().filter(|it| it.iter().all(|number| number.is_finite())).ok_or_else(wrong)?;
    let share = |number: f64| (0.0..=1.0).contains(&number);
    match (family, numbers.as_slice()) {
        (Family::Identity, []) => Ok(Curve::Identity),
        (Family::Shrinkage, &[weight, base_rate]) if share(weight) && share(base_rate) => {
            Ok(Curve::Shrinkage { weight, base_rate })
        }
        (Family::Temperature, &[slope]) if slope >= 0.0 => Ok(Curve::Temperature { slope }),
        (Family::Platt, &[slope, offset]) if slope >= 0.0 => Ok(Curve::Platt { slope, offset }),
        (Family::Beta, &[success_slope, failure_slope, offset]) if success_slope >= 0.0 && failure_slope >= 0.0 => {
            Ok(Curve::Beta { success_slope, failure_slope, offset })
        }
        (Family::Isotonic, knots) => Knots::from_parameters(knots).map(Curve::Isotonic).ok_or_else(wrong),
        (Family::VennAbers, sides) => TwoSided::from_parameters(sides).map(Curve::VennAbers).ok_or_else(wrong),
        _ => Err(wrong()),
    }
}
