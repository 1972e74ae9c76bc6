//! Diagrams as SVG text: points, lines and bands in, markup out. Knows shapes and axes, nothing of policies.
//!
//! Colours are the page's: an element's class sets `--c`, and the style sheet does the rest, so that one file is
//! right in light, in dark and on paper. Every series has a marker of its own shape beside its colour.

use std::fmt::Write;

use super::record::Measured;

/// How a series is told apart: a class for the colour, a marker, and dashes for the arm that is compared with.
#[derive(Clone, Debug)]
pub(super) struct Style {
    /// The class that sets the colour.
    pub(super) class: String,
    /// The marker's number, see [`marker`].
    pub(super) marker: usize,
    /// Dashed line and hollow marker.
    pub(super) is_other: bool,
}

/// What a reader who does not see the diagram is told.
pub(super) struct Told<'a> {
    /// Unique in the page.
    pub(super) id: &'a str,
    pub(super) title: &'a str,
    pub(super) text: &'a str,
}

/// A text that may stand in markup.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

fn svg(told: &Told<'_>, width: f64, height: f64, body: &str) -> String {
    let Told { id, title, text } = told;
    format!(
        "<svg viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\" \
         aria-labelledby=\"{id}-t {id}-d\"><title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>{body}</svg>",
        escaped(title),
        escaped(text)
    )
}

/// Where a span of values lies on a span of pixels.
#[derive(Clone, Copy)]
struct Scale {
    from: (f64, f64),
    to: (f64, f64),
}

impl Scale {
    fn new(from: (f64, f64), to: (f64, f64)) -> Self {
        Self { from, to }
    }

    fn at(self, value: f64) -> f64 {
        let span = self.from.1 - self.from.0;
        let share = if span.abs() > 0.0 { (value - self.from.0) / span } else { 0.5 };
        self.to.0 + share.clamp(-0.02, 1.02) * (self.to.1 - self.to.0)
    }
}

/// A marker of one of six shapes; hollow for what is compared with.
pub(super) fn marker(shape: usize, x: f64, y: f64, size: f64, is_hollow: bool) -> String {
    let class = if is_hollow { "mh" } else { "m" };
    let s = size;
    let points = |points: &[(f64, f64)]| {
        let points: Vec<String> =
            points.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx * s, y + dy * s)).collect();
        format!("<polygon class=\"{class}\" points=\"{}\"/>", points.join(" "))
    };
    match shape {
        0 => format!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{s:.1}\"/>"),
        1 => points(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
        2 => points(&[(0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)]),
        3 => points(&[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)]),
        4 => points(&[(0.0, 1.2), (1.1, -0.8), (-1.1, -0.8)]),
        _ => points(&[(-1.1, -0.4), (0.0, -1.2), (1.1, -0.4), (0.7, 0.9), (-0.7, 0.9)]),
    }
}

fn text(x: f64, y: f64, anchor: &str, class: &str, text: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" class=\"{class}\">{}</text>", escaped(text))
}

fn segment(class: &str, from: (f64, f64), to: (f64, f64)) -> String {
    let ((x1, y1), (x2, y2)) = (from, to);
    format!("<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>")
}

/// One point of a reliability diagram.
pub(super) struct Bin {
    pub(super) stated: f64,
    pub(super) observed: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) n: usize,
}

/// Stated against observed, with bands, and how many episodes stated it below.
#[expect(clippy::cast_precision_loss, reason = "heights of bars")]
pub(super) fn reliability(told: &Told<'_>, style: &Style, bins: &[Bin]) -> String {
    let (x, y) = (Scale::new((0.0, 1.0), (36.0, 226.0)), Scale::new((0.0, 1.0), (198.0, 8.0)));
    let mut body = String::new();
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        body += &segment("grid", (x.at(tick), 8.0), (x.at(tick), 198.0));
        body += &segment("grid", (36.0, y.at(tick)), (226.0, y.at(tick)));
    }
    for tick in [0.0, 0.5, 1.0] {
        let label = format!("{:.0}", 100.0 * tick);
        body += &text(x.at(tick), 254.0, "middle", "tick", &label);
        body += &text(30.0, y.at(tick) + 4.0, "end", "tick", &label);
    }
    body += &segment("ideal", (x.at(0.0), y.at(0.0)), (x.at(1.0), y.at(1.0)));
    let n_max = bins.iter().map(|it| it.n).max().unwrap_or(1).max(1) as f64;
    let _ = write!(body, "<g class=\"{}\">", style.class);
    let path: Vec<String> = bins.iter().map(|it| format!("{:.1},{:.1}", x.at(it.stated), y.at(it.observed))).collect();
    let _ = write!(body, "<polyline class=\"line\" points=\"{}\"/>", path.join(" "));
    for bin in bins {
        let at = x.at(bin.stated);
        body += &segment("whisker", (at, y.at(bin.low)), (at, y.at(bin.high)));
        let height = 32.0 * bin.n as f64 / n_max;
        let top = 238.0 - height;
        let _ = write!(
            body,
            "<rect class=\"bar\" x=\"{:.1}\" y=\"{top:.1}\" width=\"10\" height=\"{height:.1}\"/>",
            at - 5.0
        );
    }
    for bin in bins {
        let size = 2.5 + 3.0 * (bin.n as f64 / n_max).sqrt();
        body += &marker(style.marker, x.at(bin.stated), y.at(bin.observed), size, false);
    }
    body += "</g>";
    body += &segment("axis", (36.0, 238.0), (226.0, 238.0));
    body += &text(131.0, 268.0, "middle", "label", "stated, %");
    body +=
        "<text class=\"label\" text-anchor=\"middle\" transform=\"translate(9 103) rotate(-90)\">came true, %</text>";
    svg(told, 234.0, 274.0, &body)
}

/// A series over whole steps from 1, with intervals.
pub(super) struct Horizons {
    pub(super) style: Style,
    pub(super) values: Vec<Option<Measured>>,
}

/// Shares by horizon; the series stand a little beside each other so that no interval hides another.
#[expect(clippy::cast_precision_loss, reason = "a handful of horizons and series")]
pub(super) fn horizons(told: &Told<'_>, series: &[Horizons]) -> String {
    let n = series.iter().map(|it| it.values.len()).max().unwrap_or(1).max(1);
    let (x, y) = (Scale::new((0.6, n as f64 + 0.4), (44.0, 494.0)), Scale::new((0.0, 1.0), (232.0, 10.0)));
    let mut body = String::new();
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        body += &segment("grid", (44.0, y.at(tick)), (494.0, y.at(tick)));
        body += &text(38.0, y.at(tick) + 4.0, "end", "tick", &format!("{:.0}", 100.0 * tick));
    }
    for step in 1..=n {
        let label = if step == 1 { "1 step ahead".into() } else { step.to_string() };
        body += &text(x.at(step as f64), 252.0, "middle", "tick", &label);
    }
    let spread = 0.5 / series.len().max(1) as f64;
    for (index, Horizons { style, values }) in series.iter().enumerate() {
        let beside = spread * (index as f64 - (series.len() - 1) as f64 / 2.0);
        let measured: Vec<(f64, Measured)> = values
            .iter()
            .enumerate()
            .filter_map(|(step, it)| it.map(|it| (x.at((step + 1) as f64 + beside), it)))
            .collect();
        let dashes = if style.is_other { "line other" } else { "line" };
        let path: Vec<String> = measured.iter().map(|(x, it)| format!("{x:.1},{:.1}", y.at(it.value))).collect();
        let _ =
            write!(body, "<g class=\"{}\"><polyline class=\"{dashes}\" points=\"{}\"/>", style.class, path.join(" "));
        for (x, it) in measured {
            body += &segment("whisker", (x, y.at(it.low)), (x, y.at(it.high)));
            body += &marker(style.marker, x, y.at(it.value), 4.2, style.is_other);
        }
        body += "</g>";
    }
    body += &segment("axis", (44.0, 232.0), (494.0, 232.0));
    body +=
        "<text class=\"label\" text-anchor=\"middle\" transform=\"translate(10 121) rotate(-90)\">came true, %</text>";
    svg(told, 504.0, 262.0, &body)
}

/// One line of a dot plot: a name, and values with intervals; without any, the policy states no odds.
pub(super) struct Dots {
    pub(super) name: String,
    pub(super) values: Vec<(Style, Measured)>,
}

/// The axis of a dot plot.
pub(super) struct Axis {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) ticks: Vec<(f64, String)>,
    /// Where the value would say nothing, such as a skill of 0.
    pub(super) reference: Option<f64>,
}

/// Names on the left, values with intervals on one axis.
#[expect(clippy::cast_precision_loss, reason = "a handful of lines")]
pub(super) fn dots(told: &Told<'_>, axis: &Axis, rows: &[Dots]) -> String {
    const ROW: f64 = 27.0;
    let x = Scale::new((axis.from, axis.to), (64.0, 240.0));
    let bottom = 6.0 + ROW * rows.len() as f64;
    let mut body = String::new();
    for (tick, label) in &axis.ticks {
        body += &segment("grid", (x.at(*tick), 4.0), (x.at(*tick), bottom));
        body += &text(x.at(*tick), bottom + 16.0, "middle", "tick", label);
    }
    if let Some(reference) = axis.reference {
        body += &segment("ideal", (x.at(reference), 2.0), (x.at(reference), bottom));
    }
    for (index, row) in rows.iter().enumerate() {
        let middle = 6.0 + ROW * (index as f64 + 0.5);
        body += &text(56.0, middle + 4.0, "end", "name", &row.name);
        if row.values.is_empty() {
            body += &text(72.0, middle + 4.0, "start", "tick", "–");
        }
        for (place, (style, it)) in row.values.iter().enumerate() {
            let beside =
                if row.values.len() > 1 { 9.0 * (place as f64 - (row.values.len() - 1) as f64 / 2.0) } else { 0.0 };
            let y = middle + beside;
            let _ = write!(body, "<g class=\"{}\">", style.class);
            body += &segment("whisker", (x.at(it.low), y), (x.at(it.high), y));
            body += &marker(style.marker, x.at(it.value), y, 4.2, style.is_other);
            body += "</g>";
        }
    }
    body += &segment("axis", (64.0, bottom), (240.0, bottom));
    svg(told, 252.0, bottom + 22.0, &body)
}

/// A gate's harm and interval as shares of its limit: one line of a forest plot.
pub(super) fn forest(told: &Told<'_>, class: &str, harm: f64, low: f64, high: f64, is_excused: bool) -> String {
    let x = Scale::new((-2.0, 2.0), (6.0, 254.0));
    let mut body = String::new();
    let _ = write!(
        body,
        "<rect class=\"beyond\" x=\"{:.1}\" y=\"0\" width=\"{:.1}\" height=\"26\"/>",
        x.at(1.0),
        260.0 - x.at(1.0)
    );
    body += &segment("grid", (x.at(0.0), 0.0), (x.at(0.0), 26.0));
    body += &segment("limit", (x.at(1.0), 0.0), (x.at(1.0), 26.0));
    let opacity = if is_excused { " excused" } else { "" };
    let _ = write!(body, "<g class=\"{class}{opacity}\">");
    let (from, to) = (low.clamp(-2.0, 2.0), high.clamp(-2.0, 2.0));
    body += &segment("whisker wide", (x.at(from), 13.0), (x.at(to), 13.0));
    // An arrow head says that the interval goes on.
    if high > 2.0 {
        body += "<polygon class=\"m\" points=\"258,13 251,9 251,17\"/>";
    }
    if low < -2.0 {
        body += "<polygon class=\"m\" points=\"2,13 9,9 9,17\"/>";
    }
    if (-2.0..=2.0).contains(&harm) {
        body += &marker(3, x.at(harm), 13.0, 4.6, is_excused);
    }
    body += "</g>";
    svg(told, 260.0, 26.0, &body)
}

/// A series of a line chart.
pub(super) struct Line {
    pub(super) style: Style,
    pub(super) points: Vec<(f64, f64)>,
}

/// Lines over steps; `alarms` are marked below the axis.
pub(super) fn lines(told: &Told<'_>, lines: &[Line], y_span: (f64, f64), unit: &str, alarms: &[f64]) -> String {
    let all = || lines.iter().flat_map(|it| &it.points);
    let last = all().map(|it| it.0).fold(1.0, f64::max);
    let first = all().map(|it| it.0).fold(last, f64::min);
    let (x, y) = (Scale::new((first, last), (44.0, 494.0)), Scale::new(y_span, (192.0, 10.0)));
    let mut body = String::new();
    for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let value = y_span.0 + share * (y_span.1 - y_span.0);
        body += &segment("grid", (44.0, y.at(value)), (494.0, y.at(value)));
        let label = if y_span.1 - y_span.0 < 2.0 { format!("{value:.2}") } else { format!("{value:.1}") };
        body += &text(38.0, y.at(value) + 4.0, "end", "tick", &label);
    }
    body += &text(44.0, 210.0, "start", "tick", &format!("{unit} {first:.0}"));
    body += &text(494.0, 210.0, "end", "tick", &format!("{last:.0}"));
    for Line { style, points } in lines {
        let path: Vec<String> = points.iter().map(|(px, py)| format!("{:.1},{:.1}", x.at(*px), y.at(*py))).collect();
        let dashes = if style.is_other { "line other" } else { "line" };
        let _ =
            write!(body, "<g class=\"{}\"><polyline class=\"{dashes}\" points=\"{}\"/>", style.class, path.join(" "));
        if let Some((px, py)) = points.last() {
            body += &marker(style.marker, x.at(*px), y.at(*py), 4.2, style.is_other);
        }
        body += "</g>";
    }
    for alarm in alarms {
        body += &format!("<g class=\"v-fail\">{}</g>", marker(2, x.at(*alarm), 199.0, 4.0, false));
    }
    body += &segment("axis", (44.0, 192.0), (494.0, 192.0));
    svg(told, 504.0, 218.0, &body)
}

/// A marker by itself, for legends.
pub(super) fn key(style: &Style) -> String {
    let dashes = if style.is_other { "line other" } else { "line" };
    let line = segment(dashes, (1.0, 7.0), (25.0, 7.0));
    let marker = marker(style.marker, 13.0, 7.0, 4.2, style.is_other);
    format!(
        "<svg viewBox=\"0 0 26 14\" width=\"26\" height=\"14\" aria-hidden=\"true\" class=\"{}\">{line}{marker}</svg>",
        style.class
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_outside_stays_beside_the_diagram() {
        let scale = Scale::new((0.0, 1.0), (0.0, 100.0));
        assert_eq!((scale.at(0.5), scale.at(9.0), scale.at(-9.0)), (50.0, 102.0, -2.0));
        assert_eq!(Scale::new((1.0, 1.0), (0.0, 100.0)).at(1.0), 50.0);
    }

    #[test]
    fn a_name_cannot_close_its_element() {
        assert_eq!(escaped("</text><script>"), "&lt;/text&gt;&lt;script&gt;");
    }
}
