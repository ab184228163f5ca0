//! Lines over steps, as SVG.

use super::escaped;
use std::fmt::Write;

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 250.0;
/// Room for numbers, on the left and below.
const LEFT: f64 = 58.0;
const BELOW: f64 = 26.0;
const EDGE: f64 = 8.0;

/// Colours that people with any eyesight tell apart (Okabe and Ito), without black and yellow.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// Points of a line that are drawn: as many as there are pixels.
const POINTS: usize = 500;

/// A line.
pub struct Series {
    pub name: String,
    /// Where it is, and how high. What is no number is a gap.
    pub points: Vec<(f64, f64)>,
}

/// A drawing of some lines over the same axes.
pub struct Plot {
    pub title: String,
    /// What is counted to the right.
    pub along: &'static str,
    pub series: Vec<Series>,
}

impl Plot {
    pub fn has_points(&self) -> bool {
        self.finite().next().is_some()
    }

    fn finite(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.series.iter().flat_map(|s| &s.points).copied().filter(|(x, y)| x.is_finite() && y.is_finite())
    }

    /// A figure. Colours repeat where there are more lines than colours; a legend names up to six of them, and the pointer all.
    pub fn svg(&self) -> String {
        let (x, y) = (Axis::of(self.finite().map(|p| p.0)), Axis::of(self.finite().map(|p| p.1)));
        let across = |v: f64| LEFT + x.place(v) * (WIDTH - LEFT - EDGE);
        let up = |v: f64| HEIGHT - BELOW - y.place(v) * (HEIGHT - BELOW - EDGE);
        let mut out = format!("<figure><figcaption>{}</figcaption>\n", escaped(&self.title));
        out += &format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n",
            escaped(&self.title)
        );
        let mut put = |line: String| out += &line;
        for tick in y.ticks() {
            let at = up(tick);
            put(format!(
                "<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"var(--line)\"/>"
            ));
            let (left, text) = (LEFT - 6.0, number(tick));
            put(format!("<text x=\"{left}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>\n", at + 4.0));
        }
        for tick in x.ticks() {
            let below = HEIGHT - 8.0;
            put(format!(
                "<text x=\"{:.1}\" y=\"{below}\" text-anchor=\"middle\">{}</text>\n",
                across(tick),
                number(tick)
            ));
        }
        for (i, series) in self.series.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            let points = thinned(&series.points);
            let mut path = String::new();
            let mut begin = true;
            for (x, y) in &points {
                if !y.is_finite() {
                    begin = true;
                    continue;
                }
                let letter = if begin { 'M' } else { 'L' };
                write!(path, "{letter}{:.1} {:.1}", across(*x), up(*y)).expect("texts can be written to");
                begin = false;
            }
            let name = escaped(&series.name);
            put(format!(
                "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\" stroke-linejoin=\"round\"><title>{name}</title></path>\n"
            ));
            // A single point makes no line.
            if points.len() <= 40 {
                for (x, y) in points.iter().filter(|p| p.1.is_finite()) {
                    let (cx, cy, value) = (across(*x), up(*y), number(*y));
                    put(format!(
                        "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"2.4\" fill=\"{colour}\"><title>{name} {} {x}: {value}</title></circle>",
                        self.along
                    ));
                }
            }
        }
        out += "</svg>\n";
        if self.series.len() > 1 && self.series.len() <= COLOURS.len() {
            out += "<div class=\"legend\">";
            for (series, colour) in self.series.iter().zip(COLOURS) {
                write!(out, "<span><i style=\"background:{colour}\"></i>{}</span>", escaped(&series.name))
                    .expect("texts can be written to");
            }
            out += "</div>\n";
        }
        out + "</figure>\n"
    }
}

/// From the least to the greatest number, with a little room.
struct Axis {
    least: f64,
    greatest: f64,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let (mut least, mut greatest) = (f64::INFINITY, f64::NEG_INFINITY);
        values.for_each(|v| (least, greatest) = (least.min(v), greatest.max(v)));
        if least >= greatest {
            let room = (least.abs() * 0.1).max(0.5);
            (least, greatest) = (least - room, greatest + room);
        }
        Self { least, greatest }
    }

    /// 0 is the least, 1 the greatest.
    fn place(&self, value: f64) -> f64 {
        (value - self.least) / (self.greatest - self.least)
    }

    /// Round numbers, about five.
    fn ticks(&self) -> Vec<f64> {
        let rough = (self.greatest - self.least) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough * 0.999);
        let step = step.unwrap_or(power).max(f64::MIN_POSITIVE);
        let first = (self.least / step).ceil();
        (0..20)
            .map(|i| (first + f64::from(i)) * step)
            .take_while(|t| *t <= self.greatest * (1.0 + 1e-12) || *t <= self.greatest)
            .collect()
    }
}

/// Of many points the least and the greatest of each of a few hundred stretches: what sticks out stays.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= POINTS {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil(POINTS / 2);
    let mut kept = Vec::new();
    for part in points.chunks(stretch) {
        let by_height = |a: &(usize, &(f64, f64)), b: &(usize, &(f64, f64))| a.1.1.total_cmp(&b.1.1);
        let finite = || part.iter().enumerate().filter(|p| p.1.1.is_finite());
        let mut ends: Vec<usize> =
            finite().min_by(by_height).into_iter().chain(finite().max_by(by_height)).map(|p| p.0).collect();
        ends.sort_unstable();
        ends.dedup();
        kept.extend(ends.into_iter().map(|i| part[i]));
    }
    kept
}

/// A number in a few characters.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        0.0 => "0".to_owned(),
        _ if !(1e-3..1e9).contains(&size) => format!("{value:.2e}"),
        _ if size >= 1e6 => trimmed(format!("{:.2}", value / 1e6)) + "M",
        _ if size >= 1e4 => trimmed(format!("{:.1}", value / 1e3)) + "k",
        _ if size >= 100.0 => trimmed(format!("{value:.1}")),
        _ => trimmed(format!("{value:.4}")),
    }
}

fn trimmed(text: String) -> String {
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
