//! Prometheus' text format 0.0.4 and OpenMetrics 1.0.
//!
//! Sources: Prometheus' documentation, "Exposition formats"; the OpenMetrics specification, "Text format".

use std::fmt::{Display, Write as _};

/// Longer values of labels are cut: the longest `namespace/name` of a Service has 127 characters.
const LABEL_MAX: usize = 256;

/// What a family's samples are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; its name ends with `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How many values were not more than each of some bounds, with their sum.
    Histogram,
    /// Always 1: what it says is in its labels. Its name ends with `_info`.
    Info,
}

/// Metrics with one name.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// As it is asked for; a histogram's samples add `_bucket`, `_sum` and `_count`.
    pub name: &'static str,
    /// What its samples are.
    pub kind: Kind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it means, in one sentence.
    pub help: &'static str,
}

/// A format that a page can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The one that suits an `Accept` header best; the older one where both suit.
    pub fn accepted(accept: &str) -> Self {
        let quality = |wanted: fn(&str) -> bool| {
            let ranges = accept.split(',').filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                let media = parts.next()?;
                let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
                let parameter = |name: &str| {
                    let mut all = parameters.iter();
                    all.find(|(own, _)| own.eq_ignore_ascii_case(name))
                        .map(|(_, value)| value.trim_matches('"'))
                };
                let suits = wanted(&media.to_ascii_lowercase())
                    && parameter("version").is_none_or(|version| matches!(version, "1.0.0" | "0.0.4"));
                let quality: f32 = parameter("q").map_or(Some(1.0), |q| q.parse().ok())?;
                suits.then_some(quality)
            });
            ranges.fold(0.0, f32::max)
        };
        let openmetrics = quality(|media| media == "application/openmetrics-text");
        let text = quality(|media| matches!(media, "text/plain" | "text/*" | "*/*"));
        if openmetrics > 0.0 && openmetrics >= text { Self::OpenMetrics } else { Self::Text }
    }

    /// The `Content-Type` of a page.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A page of metrics, as it is written.
pub(super) struct Page {
    format: Format,
    text: String,
    family: Option<&'static Family>,
}

impl Page {
    /// An empty one.
    pub(super) fn new(format: Format) -> Self {
        Self { format, text: String::new(), family: None }
    }

    /// Begins a family; its samples follow.
    pub(super) fn family(&mut self, family: &'static Family) -> &mut Self {
        self.family = Some(family);
        let Family { name, kind, help, .. } = family;
        let (name, kind) = match (self.format, kind) {
            (Format::Text, Kind::Counter) => (*name, "counter"),
            // It knows no other type for what does not change.
            (_, Kind::Gauge) | (Format::Text, Kind::Info) => (*name, "gauge"),
            (_, Kind::Histogram) => (*name, "histogram"),
            (Format::OpenMetrics, Kind::Counter) => (stem(name, "_total"), "counter"),
            (Format::OpenMetrics, Kind::Info) => (stem(name, "_info"), "info"),
        };
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
        self
    }

    /// One sample of the family: values of its labels, in its order, and its own.
    pub(super) fn sample(&mut self, labels: &[&str], value: impl Display) {
        self.part("", labels, None, value);
    }

    /// A family of one sample without labels.
    pub(super) fn single(&mut self, family: &'static Family, value: impl Display) {
        self.family(family).sample(&[], value);
    }

    /// A sample whose name ends with `suffix`, with a bucket's bound.
    pub(super) fn part(&mut self, suffix: &str, labels: &[&str], le: Option<&str>, value: impl Display) {
        let Some(family) = self.family else { return };
        debug_assert_eq!(labels.len(), family.labels.len(), "{}", family.name);
        self.text.extend([family.name, suffix]);
        let pairs = family.labels.iter().copied().zip(labels.iter().copied()).chain(le.map(|le| ("le", le)));
        let mut before = '{';
        for (name, value) in pairs {
            self.text.push(before);
            self.text.extend([name, "=\""]);
            self.escape(value);
            self.text.push('"');
            before = ',';
        }
        if before == ',' {
            self.text.push('}');
        }
        self.line(format_args!(" {value}"));
    }

    /// The whole page.
    pub(super) fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.line(format_args!("# EOF"));
        }
        self.text
    }

    fn escape(&mut self, value: &str) {
        for c in value.chars().take(LABEL_MAX) {
            match c {
                '\\' => self.text.push_str("\\\\"),
                '"' => self.text.push_str("\\\""),
                '\n' => self.text.push_str("\\n"),
                // Both formats allow them; whoever shows them may not.
                c if c.is_control() => self.text.push(char::REPLACEMENT_CHARACTER),
                c => self.text.push(c),
            }
        }
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{text}");
    }
}

/// OpenMetrics names a family without what its samples' names end with.
fn stem<'a>(name: &'a str, suffix: &str) -> &'a str {
    name.strip_suffix(suffix).unwrap_or(name)
}
