//! The text in which Prometheus is told, version 0.0.4: written in one place, so that names, help and escaping are right.
//!
//! A metric is a constant ([`Metric`]); its samples stand together below its HELP and TYPE lines, also when there are none, so
//! that a reader can tell what exists from what is zero.

use std::collections::BTreeSet;
use std::fmt::Write;

/// What HTTP calls this format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Gauge,
    /// Its name ends in `_total`; it only grows while the process lives.
    Counter,
    Histogram,
}

/// What can be measured.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
}

impl Metric {
    pub const fn gauge(name: &'static str, help: &'static str) -> Metric {
        Metric { name, kind: Kind::Gauge, help }
    }

    pub const fn counter(name: &'static str, help: &'static str) -> Metric {
        Metric { name, kind: Kind::Counter, help }
    }

    pub const fn histogram(name: &'static str, help: &'static str) -> Metric {
        Metric { name, kind: Kind::Histogram, help }
    }
}

/// Names and values of labels. An empty one is written: it keeps a scraper from putting its own in that place.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// Which release this is, in which role it runs.
const BUILD_INFO: Metric = Metric::gauge("coppice_build_info", "1, with the release and the role of the process.");

/// What one scrape is answered.
#[derive(Default)]
pub struct Exposition {
    text: String,
    seen: BTreeSet<&'static str>,
}

/// A metric whose samples are being written.
pub struct Family<'a> {
    out: &'a mut Exposition,
    name: &'static str,
}

impl Exposition {
    /// Of a process in this role: controller, node or standalone.
    pub fn of(role: &str) -> Exposition {
        let mut out = Exposition::default();
        out.family(BUILD_INFO).count(&[("role", role), ("version", env!("CARGO_PKG_VERSION"))], 1);
        out
    }

    /// Begins a metric; all its samples follow. Each is begun once.
    pub fn family(&mut self, metric: Metric) -> Family<'_> {
        let Metric { name, kind, help } = metric;
        debug_assert!(self.seen.insert(name), "{name} is begun twice");
        let kind = match kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::Histogram => "histogram",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { out: self, name }
    }

    pub fn finish(self) -> String {
        self.text
    }
}

impl Family<'_> {
    pub fn sample(&mut self, labels: Labels<'_>, value: f64) {
        self.line("", labels, None, value);
    }

    /// Whole numbers, exact up to 2^53 where the reader's numbers end.
    pub fn count(&mut self, labels: Labels<'_>, value: u64) {
        self.sample(labels, value as f64);
    }

    /// `buckets`: observations for each bound, those of the smaller ones not included, and last those beyond.
    pub fn histogram(&mut self, labels: Labels<'_>, bounds: &[f64], buckets: &[u64], sum: f64) {
        let mut total = 0u64;
        for (n, count) in buckets.iter().enumerate() {
            total = total.saturating_add(*count);
            let bound = bounds.get(n).copied().unwrap_or(f64::INFINITY);
            self.line("_bucket", labels, Some(bound), total as f64);
        }
        self.line("_sum", labels, None, sum);
        self.line("_count", labels, None, total as f64);
    }

    fn line(&mut self, suffix: &str, labels: Labels<'_>, bound: Option<f64>, value: f64) {
        let text = &mut self.out.text;
        text.push_str(self.name);
        text.push_str(suffix);
        let mut open = '{';
        let mut label = |name: &str, value: &str| {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(text, "{open}{name}=\"{value}\"");
            open = ',';
        };
        labels.iter().for_each(|(name, value)| label(name, value));
        if let Some(bound) = bound {
            label("le", &number(bound));
        }
        if open == ',' {
            text.push('}');
        }
        let _ = writeln!(text, " {}", number(value));
    }
}

fn number(value: f64) -> String {
    match value {
        f64::INFINITY => "+Inf".into(),
        f64::NEG_INFINITY => "-Inf".into(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_as_the_format_wants_it() {
        let mut out = Exposition::default();
        let mut family = out.family(Metric::gauge("a_bytes", "Two\nlines, one \\."));
        family.count(&[], 1 << 40);
        family.sample(&[("name", "a \"b\"\n\\"), ("none", ""), ("other", "ü")], -0.5);
        out.family(Metric::counter("b_total", "Nothing yet."));
        let text = out.finish();
        let wanted = [
            r"# HELP a_bytes Two\nlines, one \\.",
            "# TYPE a_bytes gauge",
            "a_bytes 1099511627776",
            r#"a_bytes{name="a \"b\"\n\\",none="",other="ü"} -0.5"#,
            "# HELP b_total Nothing yet.",
            "# TYPE b_total counter",
            "",
        ];
        assert_eq!(text, wanted.join("\n"));
    }

    #[test]
    fn buckets_add_up_to_the_last() {
        let mut out = Exposition::default();
        let latency = Metric::histogram("c_seconds", "Time.");
        out.family(latency).histogram(&[("op", "read")], &[0.000016, 1.0], &[2, 0, 3], 7.25);
        let text = out.finish();
        let wanted = [
            "# HELP c_seconds Time.",
            "# TYPE c_seconds histogram",
            r#"c_seconds_bucket{op="read",le="0.000016"} 2"#,
            r#"c_seconds_bucket{op="read",le="1"} 2"#,
            r#"c_seconds_bucket{op="read",le="+Inf"} 5"#,
            r#"c_seconds_sum{op="read"} 7.25"#,
            r#"c_seconds_count{op="read"} 5"#,
            "",
        ];
        assert_eq!(text, wanted.join("\n"));
    }
}
