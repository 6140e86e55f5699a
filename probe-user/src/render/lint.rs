//! What `plsprobe lint` found, as text and JSON.

use std::io::{self, Write};

use probe_model::explain::{Finding, Remedy, Severity};
use probe_model::lint::{Lint, Silence};
use probe_model::world::World;
use serde_json::{Value, json};

use super::explanation::{remedy_value, rests_on};
use super::{clean, json_line};

/// Version of the JSON that [`json()`] writes.
pub const SCHEMA: &str = "plsprobe.lint/1";

/// Writes the findings for people, the worst first, then what could not be judged.
///
/// # Errors
///
/// What `out` says.
pub fn text(world: &World, name: &str, lint: &Lint, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}: {}", clean(name), summary(lint))?;
    for found in &lint.findings {
        writeln!(out)?;
        finding(found, out)?;
    }
    if !lint.disagreements.is_empty() {
        writeln!(out, "\nsources disagree")?;
        for disagreement in &lint.disagreements {
            writeln!(out, "  {}", clean(&disagreement.to_string()))?;
        }
    }
    if !lint.unjudged.is_empty() {
        writeln!(out, "\nnot judged")?;
        for unjudged in &lint.unjudged {
            writeln!(out, "  {}: {}", clean(&unjudged.what), clean(&unjudged.why))?;
        }
    }
    writeln!(out, "\nrests on {}", clean(&rests_on(world)))
}

/// `2 errors, 1 warning`; `nothing found`.
fn summary(lint: &Lint) -> String {
    let count = |severity: Severity| {
        let count = lint.findings.iter().filter(|found| found.severity == severity).count();
        let plural = if count == 1 { "" } else { "s" };
        (count != 0).then(|| format!("{count} {}{plural}", severity.text()))
    };
    let counts: Vec<_> =
        [Severity::Error, Severity::Warning, Severity::Note].into_iter().filter_map(count).collect();
    match (counts.is_empty(), lint.unjudged.is_empty()) {
        (true, true) => "nothing found".to_owned(),
        (true, false) => "nothing found; not everything could be judged".to_owned(),
        (false, _) => counts.join(", "),
    }
}

/// One finding: what is wrong, whose it is, what proves it, what to do.
///
/// # Errors
///
/// What `out` says.
pub(super) fn finding(found: &Finding, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{} {}: {}", found.severity.text(), found.code, clean(&found.sentence))?;
    let mut line = |label: &str, text: &str| writeln!(out, "  {label:<9}{}", clean(text));
    line("object", &found.subject.to_string())?;
    for evidence in &found.evidence {
        line("proof", &format!("{} ({})", evidence.what, evidence.source.text()))?;
    }
    for remedy in &found.remedy {
        match remedy {
            Remedy::Text(text) => line("remedy", text)?,
            Remedy::Command(command) => line("run", command)?,
            Remedy::Yaml(yaml) => {
                line("apply", "this object (kubectl apply -f -):")?;
                for row in yaml.lines() {
                    line("", row)?;
                }
            }
        }
    }
    for code in &found.assumptions {
        line("assumes", &format!("{} [{code}]", code.title()))?;
    }
    Ok(())
}

/// Writes one line of JSON a finding, then one with what could not be judged.
///
/// # Errors
///
/// What `out` says.
pub fn json(world: &World, name: &str, lint: &Lint, out: &mut impl Write) -> io::Result<()> {
    for found in &lint.findings {
        let mut value = finding_value(found);
        value["schema"] = json!(SCHEMA);
        value["target"] = json!(name);
        json_line(&value, out)?;
    }
    let unjudged = lint.unjudged.iter().map(|one| json!({ "what": one.what, "why": one.why }));
    let disagreements = lint.disagreements.iter().map(|one| {
        let claims = one.claims.iter().map(|claim| json!({ "who": claim.who, "what": claim.what }));
        json!({ "about": one.about, "claims": claims.collect::<Vec<_>>(), "advice": one.advice })
    });
    let summary = json!({
        "schema": SCHEMA, "target": name, "summary": summary(lint), "findings": lint.findings.len(),
        "unjudged": unjudged.collect::<Vec<_>>(), "disagreements": disagreements.collect::<Vec<_>>(),
        "world": { "origin": world.origin, "cilium": world.version,
            "missing": world.missing.iter()
                .map(|missing| json!({ "what": missing.what, "why": missing.why })).collect::<Vec<_>>() },
    });
    writeln!(out, "{summary}")
}

/// A finding as a JSON object.
pub(super) fn finding_value(found: &Finding) -> Value {
    let evidence = found.evidence.iter().map(|one| json!({ "what": one.what, "source": one.source.text() }));
    let remedy = found.remedy.iter().map(remedy_value);
    let subject = &found.subject;
    let written =
        subject.written.as_ref().map(|at| json!({ "path": at.path, "line": at.line, "column": at.column }));
    json!({
        "code": found.code.text(), "severity": found.severity.text(), "sentence": found.sentence,
        "subject": { "kind": subject.kind.text(), "namespace": subject.namespace, "name": subject.name, "written": written },
        "evidence": evidence.collect::<Vec<_>>(), "remedy": remedy.collect::<Vec<_>>(),
        "assumptions": found.assumptions.iter().map(|code| code.text()).collect::<Vec<_>>(),
    })
}

/// Why no packet came: what keeps them away, or what it may be.
///
/// # Errors
///
/// What `out` says.
pub(super) fn silence(silence: &Silence, out: &mut impl Write) -> io::Result<()> {
    for cause in &silence.causes {
        writeln!(out, "silence   no packet came; {} [{}]", clean(&cause.sentence), cause.code)?;
    }
    if silence.causes.is_empty() {
        let codes: Vec<_> =
            silence.candidates.iter().map(|code| format!("{code} {}", code.title())).collect();
        writeln!(
            out,
            "silence   no packet came, and nothing that is known here keeps them away; it may be: {} (plsprobe causes CODE says how to find out)",
            codes.join("; ")
        )?;
    }
    Ok(())
}

/// The same as a JSON object.
pub(super) fn silence_value(silence: &Silence) -> Value {
    json!({
        "causes": silence.causes.iter().map(finding_value).collect::<Vec<_>>(),
        "candidates": silence.candidates.iter().map(|code| code.text()).collect::<Vec<_>>(),
    })
}
