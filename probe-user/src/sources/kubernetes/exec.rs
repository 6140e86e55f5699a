//! A user who logs in by a command, as kubelogin does for AKS.
//!
//! Source: `client.authentication.k8s.io/v1`, "client-go credential plugins".

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::{Value as Json, json};

use crate::sources::{
    command,
    http::shown,
    yaml::{Node, Value},
};

/// How long it may take: somebody may have to type a code into a browser.
const PATIENCE: Duration = Duration::from_mins(3);
/// Bytes that it may print: a token has some thousand.
const OUTPUT_MAX: u64 = 1 << 20;
/// Versions of what it prints.
const VERSIONS: [&str; 2] = ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];

/// The token that the command of a kubeconfig's `exec` gives. It runs as whoever runs us, as kubectl runs it; what it says
/// on standard error is for the operator.
///
/// # Errors
///
/// When it cannot be run, fails, takes too long, wants a terminal, or gives a certificate.
pub(super) fn token(exec: &Node) -> Result<String> {
    let text = |name: &str| exec.get(name).and_then(Node::text);
    let program = text("command").filter(|name| !name.is_empty()).context("its `exec` names no command")?;
    let name = shown(program);
    let version = text("apiVersion").unwrap_or_default();
    ensure!(
        VERSIONS.contains(&version),
        "its `exec` has the version `{}`, expected `{}`",
        shown(version),
        VERSIONS.join("` or `")
    );
    let is_set = |name| exec.get(name).is_some_and(|node| matches!(node.value, Value::Bool(true, _)));
    ensure!(
        text("interactiveMode") != Some("Always"),
        "its command `{name}` wants a terminal, which plsprobe does not give it; log in first, with another login mode"
    );
    ensure!(
        !is_set("provideClusterInfo"),
        "its command `{name}` wants the cluster's description, which plsprobe does not give"
    );
    let info = json!({ "apiVersion": version, "kind": "ExecCredential", "spec": { "interactive": false } });
    let mut command = Command::new(program);
    command.args(list(exec, "args").filter_map(Node::text)).env("KUBERNETES_EXEC_INFO", info.to_string());
    for variable in list(exec, "env") {
        let field = |name| variable.get(name).and_then(Node::text);
        let (name, value) =
            field("name").zip(field("value")).context("its `exec` has an `env` without name and value")?;
        command.env(name, value);
    }
    let printed = run(command, PATIENCE).with_context(|| {
        let hint = text("installHint").map_or_else(String::new, |hint| format!(" ({})", shown(hint)));
        format!("its user logs in by the command `{name}`, which failed{hint}")
    })?;
    read(&printed, version).with_context(|| format!("the command `{name}` by which its user logs in"))
}

fn list<'n>(exec: &'n Node, name: &str) -> impl Iterator<Item = &'n Node> {
    let list = exec.get(name).and_then(|node| match &node.value {
        Value::List(items) => Some(items.as_slice()),
        _ => None,
    });
    list.unwrap_or_default().iter()
}

/// What a command prints; it is ended when it takes too long.
fn run(mut command: Command, patience: Duration) -> Result<String> {
    let Some(ended) = command::run(&mut command, patience, OUTPUT_MAX)? else {
        bail!("it took longer than {patience:?} and was ended");
    };
    ensure!(ended.status.success(), "it ended with {}", ended.status);
    Ok(ended.stdout?)
}

/// The token in an `ExecCredential`. What it printed is never shown.
fn read(printed: &str, version: &str) -> Result<String> {
    let credential: Json = serde_json::from_str(printed).map_err(|_| anyhow!("printed no JSON"))?;
    let found = credential["apiVersion"].as_str().unwrap_or_default();
    ensure!(found == version, "printed the version `{}`, expected `{version}`", shown(found));
    let status = &credential["status"];
    match status["token"].as_str().filter(|token| !token.is_empty()) {
        Some(token) => Ok(token.to_owned()),
        None if status["clientCertificateData"].is_string() => {
            bail!("gave a certificate, which plsprobe takes only from the kubeconfig itself")
        }
        None => bail!("gave no token"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::yaml;

    const V1: &str = "client.authentication.k8s.io/v1";

    fn login(script: &str, more: &str) -> Result<String, String> {
        let script = script.replace('\'', "''");
        let text = format!("apiVersion: {V1}\ncommand: sh\nargs: [-c, '{script}']\n{more}\n");
        let documents = yaml::parse(&text).map_err(|problem| problem.what.clone())?;
        token(&documents[0]).map_err(|error| format!("{error:#}"))
    }

    fn prints(status: &str) -> String {
        format!(r#"echo '{{"apiVersion":"{V1}","kind":"ExecCredential","status":{status}}}'"#)
    }

    #[test]
    fn a_token_as_kubelogin_gives_it() {
        assert_eq!(login(&prints(r#"{"token":"abc"}"#), "interactiveMode: IfAvailable").unwrap(), "abc");
        let env = r#"echo '{"apiVersion":"client.authentication.k8s.io/v1","status":{"token":"'$MODE'"}}'"#;
        assert_eq!(login(env, "env: [{name: MODE, value: azurecli}]").unwrap(), "azurecli");
        let told = r#"case "$KUBERNETES_EXEC_INFO" in *'"interactive":false'*) ;; *) exit 1;; esac; "#
            .to_owned()
            + &prints(r#"{"token":"t"}"#);
        assert_eq!(login(&told, "").unwrap(), "t");
    }

    #[test]
    fn what_is_no_token_is_said_and_never_shown() {
        let fails = |script: &str, more: &str, expected: &str| {
            let error = login(script, more).unwrap_err();
            assert!(error.contains(expected) && !error.contains("secret"), "{error}");
        };
        fails(
            "exit 3",
            "installHint: install kubelogin",
            "which failed (install kubelogin): it ended with exit status: 3",
        );
        fails("echo secret", "", "printed no JSON");
        fails(&prints(r#"{"other":"secret"}"#), "", "gave no token");
        fails(&prints(r#"{"clientCertificateData":"secret"}"#), "", "gave a certificate");
        fails("echo '{\"apiVersion\":\"v9\"}'", "", "printed the version `v9`");
        fails(":", "interactiveMode: Always", "wants a terminal");
        fails(":", "provideClusterInfo: true", "wants the cluster's description");
        fails(":", "env: [{name: A}]", "without name and value");
    }

    #[test]
    fn a_command_that_does_not_end_is_ended() {
        let mut command = Command::new("sleep");
        command.arg("600");
        let error = run(command, Duration::from_millis(200)).unwrap_err().to_string();
        assert!(error.contains("took longer than 200ms"), "{error}");
        assert!(run(Command::new("/nowhere/kubelogin"), PATIENCE).is_err());
    }
}
