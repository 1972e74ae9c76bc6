//! Recalibration maps as the key-value metadata of a weights file, and back with every value proved.

use super::isotonic::Knots;
use super::{Curve, Family, RecalibrationError, RecalibrationMap};

const FAMILY: &str = "fsq.recalibration.family";
const PARAMETERS: &str = "fsq.recalibration.parameters";
const N: &str = "fsq.recalibration.n";
const DIGEST: &str = "fsq.recalibration.digest";

impl RecalibrationMap {
    /// The map as metadata. Numbers are written so that reading gives the same bits back; several
    /// are separated by commas.
    pub fn to_pairs(&self) -> Vec<(&'static str, String)> {
        let parameters: Vec<String> = self.parameters().iter().map(f64::to_string).collect();
        vec![
            (FAMILY, self.family().name().to_owned()),
            (PARAMETERS, parameters.join(",")),
            (N, self.n.to_string()),
            (DIGEST, self.digest.clone()),
        ]
    }

    /// The map in some metadata; other keys are passed over. `None` if there is no key of a map.
    ///
    /// # Errors
    /// A map that is there in part, or a value no fit could have written: slopes that turn the order
    /// around, numbers that are not finite, a digest that is none.
    pub fn from_pairs<K: AsRef<str>, V: AsRef<str>>(
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Option<Self>, RecalibrationError> {
        let keys = [FAMILY, PARAMETERS, N, DIGEST];
        let mut values: [Option<V>; 4] = [const { None }; 4];
        for (key, value) in pairs {
            if let Some(at) = keys.iter().position(|it| *it == key.as_ref()) {
                values[at] = Some(value);
            }
        }
        if values.iter().all(Option::is_none) {
            return Ok(None);
        }
        let value = |at: usize| {
            let key = keys[at];
            values[at].as_ref().map(V::as_ref).ok_or(RecalibrationError::MissingKey { key })
        };
        let family = Family::from_name(value(0)?)
            .ok_or_else(|| invalid(FAMILY, "the name of a family", value(0).unwrap_or_default()))?;
        let curve = curve(family, value(1)?)?;
        let n = value(2)?.parse().ok().filter(|&n: &usize| n > 0 || family == Family::Identity);
        let n = n.ok_or_else(|| invalid(N, "a number of outcomes", value(2).unwrap_or_default()))?;
        let digest = value(3)?;
        if digest.len() != 64 || !digest.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(invalid(DIGEST, "64 lower-case hexadecimal digits", digest));
        }
        Ok(Some(Self { curve, n, digest: digest.to_owned() }))
    }
}

fn invalid(key: &'static str, expected: &'static str, found: &str) -> RecalibrationError {
    const CHARACTERS_MAX: usize = 60;
    RecalibrationError::InvalidValue { key, expected, found: found.chars().take(CHARACTERS_MAX).collect() }
}

fn curve(family: Family, written: &str) -> Result<Curve, RecalibrationError> {
    let expected = match family {
        Family::Identity => "no parameters",
        Family::Shrinkage => "a weight and a base rate in 0..=1",
        Family::Temperature => "one slope, not negative",
        Family::Platt => "a slope, not negative, and an offset",
        Family::Beta => "two slopes, not negative, and an offset",
        Family::Isotonic => "ascending places and as many values that never descend, in 0..=1",
    };
    let wrong = || invalid(PARAMETERS, expected, written);
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
        _ => Err(wrong()),
    }
}
