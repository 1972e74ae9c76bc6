//! Plots of a study as files of their own: the report's diagrams, with the page's colours and a legend inside.

use std::fmt::Write as _;

use super::charts::{Axis, Dots, Horizons, Style, Told, dots, escaped, horizons, marker};
use super::record::Measured;

/// Colours of the page, and markers.
const STYLES: usize = 6;
/// The heights of title and of a line of the legend.
const TITLE: f64 = 26.0;
const LINE: f64 = 18.0;

/// Values by horizon.
pub(crate) struct Stepped {
    pub(crate) name: String,
    /// Sets colour and marker.
    pub(crate) place: usize,
    /// Dashed and hollow.
    pub(crate) is_other: bool,
    pub(crate) values: Vec<Option<Measured>>,
}

/// A line of a dot plot.
pub(crate) struct Dotted {
    pub(crate) name: String,
    /// Sets colour and marker.
    pub(crate) place: usize,
    /// Whether each is hollow.
    pub(crate) values: Vec<(bool, Measured)>,
}

fn style(place: usize, is_other: bool) -> Style {
    // Beyond six the colours begin again with other markers.
    let marker = (place + place / STYLES) % STYLES;
    Style { class: format!("p{}", place % STYLES), marker, is_other }
}

/// Shares by horizon, a series for each policy.
pub(crate) fn horizons_file(title: &str, series: &[Stepped]) -> String {
    let told = Told { id: "fidelity", title, text: "Share of imagined states that came true, by steps ahead." };
    let lines: Vec<Horizons> =
        series.iter().map(|it| Horizons { style: style(it.place, it.is_other), values: it.values.clone() }).collect();
    let mut legend = String::new();
    for (index, it) in series.iter().enumerate() {
        #[expect(clippy::cast_precision_loss, reason = "a dozen series")]
        let (x, y) = (16.0 + 82.0 * (index % 6) as f64, TITLE + LINE * ((index / 6) as f64 + 0.5));
        let style = style(it.place, it.is_other);
        let mark = marker(style.marker, x, y - 4.0, 4.2, it.is_other);
        let _ = write!(
            legend,
            "<g class=\"{}\">{mark}</g><text x=\"{:.1}\" y=\"{y:.1}\" class=\"name\">{}</text>",
            style.class,
            x + 9.0,
            escaped(&it.name)
        );
    }
    #[expect(clippy::cast_precision_loss, reason = "a dozen series")]
    let above = TITLE + LINE * series.len().div_ceil(6) as f64;
    file(title, &legend, &horizons(&told, &lines), above, (504.0, 262.0))
}

/// A dot and interval for each value of each line, on an axis that holds all of them.
pub(crate) fn dots_file(title: &str, rows: &[Dotted]) -> String {
    let told = Told { id: "dots", title, text: "A value and its 95 % interval for each arm." };
    let ends = || rows.iter().flat_map(|it| &it.values).flat_map(|it| [it.1.low, it.1.high]);
    // To tenths, so that the ticks are round.
    let tenth = |it: f64, up: bool| (if up { (10.0 * it).ceil() } else { (10.0 * it).floor() }) / 10.0;
    let from = tenth(ends().fold(0.0, f64::min), false);
    let to = tenth(ends().fold(from + 0.1, f64::max), true);
    let ticks = [from, 0.5 * (from + to), to].map(|it| (it, format!("{it:.2}")));
    let axis = Axis { from, to, ticks: ticks.into(), reference: (from < 0.0).then_some(0.0) };
    let lines: Vec<Dots> = rows
        .iter()
        .map(|it| Dots {
            name: it.name.clone(),
            values: it.values.iter().map(|(is_other, value)| (style(it.place, *is_other), *value)).collect(),
        })
        .collect();
    #[expect(clippy::cast_precision_loss, reason = "a dozen arms")]
    let height = 28.0 + 27.0 * rows.len() as f64;
    file(title, "", &dots(&told, &axis, &lines), TITLE, (252.0, height))
}

/// A diagram with what it needs to stand alone.
fn file(title: &str, legend: &str, diagram: &str, above: f64, (width, height): (f64, f64)) -> String {
    let (width, total) = (width + 16.0, above + height + 12.0);
    let placed = diagram.replacen("<svg ", &format!("<svg x=\"8\" y=\"{above:.0}\" "), 1);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {total:.0}\" width=\"{width:.0}\" \
         height=\"{total:.0}\"><style><![CDATA[{}]]></style>\
         <rect width=\"100%\" height=\"100%\" fill=\"var(--panel)\"/>\
         <text x=\"12\" y=\"18\" class=\"name\">{}</text>{legend}{placed}</svg>\n",
        include_str!("page.css"),
        escaped(title)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_stands_alone_and_shows_every_value() {
        let it = |value| Measured { value, low: value - 0.05, high: value + 0.05 };
        let rows: Vec<Dotted> = (0..10)
            .map(|place| Dotted { name: format!("<{place}>"), place, values: vec![(true, it(0.3)), (false, it(-0.1))] })
            .collect();
        let dots = dots_file("a & b", &rows);
        assert!(dots.starts_with("<svg xmlns=") && dots.contains("a &amp; b") && !dots.contains("<0>"));
        assert_eq!(dots.matches("class=\"whisker\"").count(), 20);
        let series: Vec<Stepped> = (0..7)
            .map(|place| Stepped { name: "E/rl".into(), place, is_other: false, values: vec![Some(it(0.5)), None] })
            .collect();
        let fidelity = horizons_file("fidelity", &series);
        assert_eq!(fidelity.matches("class=\"whisker\"").count(), 7);
        assert_eq!(fidelity.matches("E/rl</text>").count(), 7);
    }
}
