//! A reader of both formats, written from their specifications and knowing nothing of the writer.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};

/// Labels of a sample.
pub(super) type Labels = BTreeMap<String, String>;

/// A family, as it was read.
#[derive(Debug, Default)]
pub(super) struct Read {
    /// Its name as its `TYPE` line has it.
    pub(super) name: String,
    /// Its type.
    pub(super) kind: String,
    /// Its help.
    pub(super) help: String,
    /// Names, labels and values of its samples.
    pub(super) samples: Vec<(String, Labels, f64)>,
}

/// Reads a page, refusing what the specification does.
pub(super) fn page(text: &str, is_openmetrics: bool) -> Result<Vec<Read>> {
    let text = match (is_openmetrics, text.strip_suffix("# EOF\n")) {
        (true, Some(text)) => text,
        (true, None) => bail!("does not end with # EOF"),
        (false, None) => text,
        (false, Some(_)) => bail!("text has an EOF"),
    };
    ensure!(text.ends_with('\n'), "the last line has no end");
    let mut families: Vec<Read> = Vec::new();
    let mut series = BTreeSet::new();
    for line in text.lines() {
        let read = || -> Result<()> {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').context("HELP without text")?;
                ensure!(families.iter().all(|family| family.name != name), "a family again");
                ensure!(!help.contains(['\\', '"']), "HELP that must be escaped");
                families.push(Read { name: name.to_owned(), help: help.to_owned(), ..Read::default() });
                return Ok(());
            }
            let family = families.last_mut().context("a line before any HELP")?;
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').context("TYPE without type")?;
                ensure!(name == family.name && family.kind.is_empty() && family.samples.is_empty(), "TYPE");
                kind.clone_into(&mut family.kind);
                return Ok(());
            }
            let (name, labels, value) = sample(line)?;
            let suffix = name.strip_prefix(&family.name).context("a sample of another family")?;
            let suffixes: &[&str] = match (family.kind.as_str(), is_openmetrics) {
                ("counter", true) => &["_total"],
                ("counter" | "gauge", _) => &[""],
                ("histogram", _) => &["_bucket", "_sum", "_count"],
                ("info", true) => &["_info"],
                (other, _) => bail!("type `{other}`"),
            };
            ensure!(suffixes.contains(&suffix), "suffix `{suffix}`");
            ensure!(value >= 0.0 || family.kind == "gauge", "a negative count");
            ensure!(family.kind != "info" || value.to_bits() == 1_f64.to_bits(), "an info that is not 1");
            ensure!(series.insert((name.clone(), labels.clone())), "a series again");
            family.samples.push((name, labels, value));
            Ok(())
        };
        read_line(read, line)?;
    }
    for family in &families {
        ensure!(is_name(&family.name, true), "`{}` is no name", family.name);
        if family.kind == "histogram" {
            histogram(family)?;
        }
        let is_total = family.name.ends_with("_total");
        ensure!(
            is_total == (family.kind == "counter" && !is_openmetrics),
            "`{}` `{}`",
            family.name,
            family.kind
        );
    }
    Ok(families)
}

fn read_line(mut read: impl FnMut() -> Result<()>, line: &str) -> Result<()> {
    read().with_context(|| format!("line `{line}`"))
}

/// Every series has buckets that only grow, up to `+Inf`, which is the count.
fn histogram(family: &Read) -> Result<()> {
    let mut by_labels: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
    let mut counts = BTreeMap::new();
    for (name, labels, value) in &family.samples {
        let mut labels = labels.clone();
        if name.ends_with("_bucket") {
            let le = labels.remove("le").context("a bucket without le")?;
            ensure!(le == "+Inf" || le.contains('.'), "le `{le}` is not canonical");
            let le = if le == "+Inf" { f64::INFINITY } else { le.parse()? };
            by_labels.entry(labels).or_default().push((le, *value));
        } else if name.ends_with("_count") {
            counts.insert(labels, *value);
        }
    }
    ensure!(by_labels.len() == counts.len(), "as many histograms as counts");
    for (labels, buckets) in by_labels {
        ensure!(buckets.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1), "{buckets:?}");
        let last = buckets.last().context("no bucket")?;
        ensure!(last.0.is_infinite() && Some(&last.1) == counts.get(&labels), "the last bucket is the count");
    }
    Ok(())
}

fn sample(line: &str) -> Result<(String, Labels, f64)> {
    let end = line.find(['{', ' ']).context("no value")?;
    let (name, mut rest) = line.split_at(end);
    ensure!(is_name(name, true), "`{name}` is no name");
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"").context("a label without value")?;
            ensure!(is_name(label, false) && !label.starts_with("__"), "label `{label}`");
            let (value, after) = quoted(after)?;
            ensure!(labels.insert(label.to_owned(), value).is_none(), "label `{label}` again");
            match after.split_at_checked(1) {
                Some((",", after)) => rest = after,
                Some(("}", after)) => {
                    rest = after;
                    break;
                }
                _ => bail!("labels are not closed"),
            }
        }
    }
    let value = rest.strip_prefix(' ').context("no value")?;
    ensure!(!value.contains(' '), "a time, or more than a value");
    Ok((name.to_owned(), labels, value.parse()?))
}

/// Up to the quote that ends it.
fn quoted(text: &str) -> Result<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((idx, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[idx + 1..])),
            '\\' => match chars.next().context("it ends in an escape")?.1 {
                'n' => value.push('\n'),
                c @ ('\\' | '"') => value.push(c),
                c => bail!("escape `{c}`"),
            },
            c => value.push(c),
        }
    }
    bail!("it has no quote at its end")
}

fn is_name(text: &str, colons: bool) -> bool {
    let is_ok = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
    !text.is_empty() && text.chars().all(is_ok) && !text.starts_with(|c: char| c.is_ascii_digit())
}
