//! Where the Kubernetes API is and who asks it: a kubeconfig, or the service account of the pod that plsprobe runs in.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::exec;

use crate::sources::{
    http::{Client, Patience, Request, Resolver, Url, shown, tls},
    yaml::{self, Node, Value},
};

/// Where Kubernetes puts a pod's service account.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Longer answers are refused: a page of 500 pods is some 10 MB.
const MAX_BODY: u64 = 64 << 20;

/// Who asks.
#[derive(Clone)]
enum Token {
    /// Nobody by name: a client's certificate says it, or nothing does.
    None,
    /// A token.
    Text(String),
    /// A file with one, which is renewed while we run.
    File(PathBuf),
}

/// The API and who asks it.
#[derive(Clone)]
pub struct Access {
    /// The API server.
    pub client: Client,
    token: Token,
    /// As an answer names it: ``kubeconfig `admin.conf`, context `aks` ``.
    pub origin: String,
}

impl fmt::Debug for Access {
    /// Without tokens and keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("base", &self.client.base)
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

impl Access {
    /// By the service account in `folder` of a pod whose API server is at `host` and `port`, as its environment says.
    ///
    /// # Errors
    ///
    /// If the folder does not have what Kubernetes puts there.
    pub fn in_pod(folder: &Path, host: &str, port: &str, patience: Patience) -> Result<Self> {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let base: Url = format!("https://{host}:{port}").parse()?;
        let ca = folder.join("ca.crt");
        let shown = format!("`{}`", ca.display());
        let pem = std::fs::read(&ca).with_context(|| format!("failed to read {shown}"))?;
        let tls = Some(tls::trusting(&pem, &shown, None)?);
        let client = Client { base, tls, patience, max_body: MAX_BODY, resolver: Resolver::default() };
        Ok(Self {
            client,
            token: Token::File(folder.join("token")),
            origin: "the pod's service account".to_owned(),
        })
    }

    /// By the kubeconfig at `path`: its current context.
    ///
    /// # Errors
    ///
    /// If it is none, or says what plsprobe does not do.
    pub fn kubeconfig(path: &Path, patience: Patience) -> Result<Self> {
        Self::kubeconfig_context(path, None, patience)
    }

    /// By a context of the kubeconfig at `path`, the current one unless one is named.
    ///
    /// # Errors
    ///
    /// If it is none, has no such context, or says what plsprobe does not do.
    pub fn kubeconfig_context(path: &Path, context: Option<&str>, patience: Patience) -> Result<Self> {
        let shown = path.display();
        let text =
            std::fs::read_to_string(path).with_context(|| format!("failed to read kubeconfig `{shown}`"))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        Self::parse(&text, folder, context, patience, &shown.to_string())
            .with_context(|| format!("failed to use kubeconfig `{shown}`"))
    }

    fn parse(
        text: &str,
        folder: &Path,
        context: Option<&str>,
        patience: Patience,
        shown_path: &str,
    ) -> Result<Self> {
        let documents = yaml::parse(text).map_err(|problem| anyhow!("{}: {}", problem.at, problem.what))?;
        let config = documents.first().context("it is empty")?;
        let current = config.get("current-context").and_then(Node::text).filter(|name| !name.is_empty());
        let context_name = context.or(current).with_context(|| {
            let known = names(config, "contexts");
            format!("it has no `current-context`; choose one by `kubectl config use-context NAME`, known are {known}")
        })?;
        let context = named(config, "contexts", context_name, "context")?;
        let name = |field| {
            context
                .get(field)
                .and_then(Node::text)
                .with_context(|| format!("context `{context_name}` names no {field}"))
        };
        let cluster = named(config, "clusters", name("cluster")?, "cluster")?;
        let user = named(config, "users", name("user")?, "user")?;
        let client = Client {
            base: cluster
                .get("server")
                .and_then(Node::text)
                .context("its cluster names no server")?
                .parse()?,
            tls: None,
            patience,
            max_body: MAX_BODY,
            resolver: Resolver::default(),
        };
        let mut access = Self {
            client,
            token: token(user, folder)?,
            origin: format!("kubeconfig `{shown_path}`, context `{}`", shown(context_name)),
        };
        ensure!(
            access.client.base.is_https || matches!(access.token, Token::None),
            "its server is not https; a token is not sent to one that cannot prove who it is"
        );
        access.client.tls = trust(cluster, user, folder)?.filter(|_| access.client.base.is_https);
        Ok(access)
    }

    /// A request with the asker's token.
    ///
    /// # Errors
    ///
    /// If the token's file cannot be read.
    pub fn request(&self, path: String) -> Result<Request> {
        let token = match &self.token {
            Token::None => return Ok(Request::get(path)),
            Token::Text(token) => token.clone(),
            Token::File(path) => {
                let text = std::fs::read_to_string(path);
                text.with_context(|| format!("failed to read the token in `{}`", path.display()))?
            }
        };
        let token = token.trim();
        let is_plain = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
        ensure!(is_plain, "the token of {} is empty or no token", self.origin);
        Ok(Request::get(path).with("Authorization", format!("Bearer {token}")))
    }
}

/// The entry of a list by its name: the part beside the name that is called `part`.
fn named<'a>(config: &'a Node, list: &str, name: &str, part: &str) -> Result<&'a Node> {
    let is_it = |entry: &&Node| entry.get("name").and_then(Node::text) == Some(name);
    let entry = entries(config, list).iter().find(is_it).with_context(|| {
        format!("found no {part} `{}`, expected one of {}", shown(name), names(config, list))
    })?;
    entry.get(part).with_context(|| format!("{part} `{}` is empty", shown(name)))
}

fn entries<'a>(config: &'a Node, list: &str) -> &'a [Node] {
    match config.get(list).map(|node| &node.value) {
        Some(Value::List(entries)) => entries.as_slice(),
        _ => &[],
    }
}

/// What a list has, for whoever named something else.
fn names(config: &Node, list: &str) -> String {
    let known = entries(config, list).iter().filter_map(|entry| entry.get("name")?.text()).map(shown);
    let known: Vec<_> = known.collect();
    if known.is_empty() { "none".to_owned() } else { known.join(", ") }
}

fn token(user: &Node, folder: &Path) -> Result<Token> {
    if let Some(command) = user.get("exec") {
        return exec::token(command).map(Token::Text);
    }
    for field in ["auth-provider", "username"] {
        let is_there = user.get(field).is_some();
        ensure!(
            !is_there,
            "its user has `{field}`, which Kubernetes no longer takes; expected a token or a certificate"
        );
    }
    let text = |field| user.get(field).and_then(Node::text).filter(|text| !text.is_empty());
    Ok(match (text("token"), text("tokenFile")) {
        (Some(token), _) => Token::Text(token.to_owned()),
        (None, Some(path)) => Token::File(folder.join(path)),
        (None, None) => Token::None,
    })
}

fn trust(cluster: &Node, user: &Node, folder: &Path) -> Result<Option<std::sync::Arc<rustls::ClientConfig>>> {
    let insecure = cluster
        .get("insecure-skip-tls-verify")
        .is_some_and(|node| matches!(node.value, Value::Bool(true, _)));
    ensure!(
        !insecure,
        "it has `insecure-skip-tls-verify`, which plsprobe does not do: the answer could be anyone's"
    );
    ensure!(cluster.get("proxy-url").is_none(), "it has `proxy-url`, which plsprobe does not do");
    let certificate = pem(user, "client-certificate", folder)?;
    let key = pem(user, "client-key", folder)?;
    let own = match (certificate, key) {
        (Some((certificate, _)), Some((key, _))) => Some(tls::Own { certificate, key }),
        (None, None) => None,
        (Some(_), None) => bail!("its user has a certificate without `client-key`"),
        (None, Some(_)) => bail!("its user has a key without `client-certificate`"),
    };
    let config = match pem(cluster, "certificate-authority", folder)? {
        Some((pem, origin)) => tls::trusting(&pem, &origin, own.as_ref())?,
        None => tls::trusting_system(own.as_ref())?,
    };
    Ok(Some(config))
}

/// PEM in a field's file, or as base64 in `FIELD-data`; and where it is from.
fn pem(node: &Node, field: &str, folder: &Path) -> Result<Option<(Vec<u8>, String)>> {
    let data = format!("{field}-data");
    let text = |field: &str| node.get(field).and_then(Node::text).filter(|text| !text.is_empty());
    if let Some(encoded) = text(&data) {
        let decoded = base64(encoded).with_context(|| format!("its `{data}` is no base64"))?;
        return Ok(Some((decoded, format!("its `{data}`"))));
    }
    let Some(path) = text(field) else { return Ok(None) };
    let path = folder.join(path);
    let shown = format!("`{}`", path.display());
    let bytes = std::fs::read(&path).with_context(|| format!("failed to read {shown}, its `{field}`"))?;
    Ok(Some((bytes, shown)))
}

/// Base64 with padding. Source: RFC 4648, section 4.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.trim_end().trim_end_matches('=').bytes().filter(|b| !b.is_ascii_whitespace()) {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            decoded.push((bits >> count) as u8);
        }
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::http::testing::{Authority, PATIENT};

    fn config(cluster: &str, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: aks\ncontexts:\n- name: aks\n  context: {{cluster: c, user: u}}\n\
             clusters:\n- name: c\n  cluster: {{server: 'https://10.0.0.1:6443', {cluster}}}\nusers:\n- name: u\n  user: {{{user}}}\n"
        )
    }

    fn parse(text: &str) -> Result<Access, String> {
        Access::parse(text, Path::new("/nowhere"), None, PATIENT, "k").map_err(|error| format!("{error:#}"))
    }

    fn ca() -> String {
        format!("certificate-authority-data: {}", encode(&Authority::new().pem()))
    }

    fn encode(text: &str) -> String {
        let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let group = |bytes: &[u8]| {
            let bits = bytes.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte))
                << (8 * (3 - bytes.len()));
            let digit = |idx: usize| digits[(bits >> (18 - 6 * idx)) as usize & 63] as char;
            let used: String = (0..=bytes.len()).map(digit).collect();
            format!("{used:=<4}")
        };
        text.as_bytes().chunks(3).map(group).collect()
    }

    #[test]
    fn a_token() {
        let access = parse(&config(&ca(), "token: t0ken")).unwrap();
        assert_eq!(access.client.base.to_string(), "https://10.0.0.1:6443");
        assert_eq!(access.origin, "kubeconfig `k`, context `aks`");
        let request = access.request("/version".to_owned()).unwrap();
        assert_eq!(request.headers, [("Authorization".into(), "Bearer t0ken".to_owned())]);
        assert!(!format!("{access:?}").contains("t0ken"));
    }

    #[test]
    fn a_context_by_its_name() {
        let two = config(&ca(), "token: t")
            .replace("clusters:", "- name: lab\n  context: {cluster: c, user: u}\nclusters:");
        let chosen = |text: &str, name| {
            let access = Access::parse(text, Path::new("/nowhere"), Some(name), PATIENT, "k");
            access.map(|access| access.origin).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(chosen(&two, "lab").unwrap(), "kubeconfig `k`, context `lab`");
        assert_eq!(chosen(&two, "prod").unwrap_err(), "found no context `prod`, expected one of aks, lab");
        let without = two.replace("current-context: aks", "current-context: ''");
        assert_eq!(chosen(&without, "aks").unwrap(), "kubeconfig `k`, context `aks`");
        assert!(parse(&without).unwrap_err().ends_with("NAME`, known are aks, lab"));
    }

    #[test]
    fn a_certificate() {
        let authority = Authority::new();
        let (certificate, key) = authority.issue("operator");
        let user =
            format!("client-certificate-data: {}, client-key-data: {}", encode(&certificate), encode(&key));
        let access = parse(&config(&ca(), &user)).unwrap();
        assert!(access.request("/".to_owned()).unwrap().headers.is_empty());
    }

    #[track_caller]
    fn refused(cluster: &str, user: &str, expected: &str) {
        let error = parse(&config(cluster, user)).unwrap_err();
        assert!(error.starts_with(expected), "{error}");
    }

    #[test]
    fn what_plsprobe_does_not_do() {
        refused(
            &ca(),
            "exec: {command: kubelogin}",
            "its `exec` has the version ``, expected `client.authentication.k8s.io/v1` or",
        );
        refused(
            "insecure-skip-tls-verify: true",
            "token: t",
            "it has `insecure-skip-tls-verify`, which plsprobe does not do",
        );
        refused("proxy-url: 'http://p'", "token: t", "it has `proxy-url`, which plsprobe does not do");
        refused(&ca(), "username: admin", "its user has `username`, which Kubernetes no longer takes");
        let plain = config("", "token: t").replace("https:", "http:");
        assert!(parse(&plain).unwrap_err().starts_with("its server is not https; a token is not sent"));
    }

    #[test]
    fn what_is_missing_or_wrong() {
        refused(
            "certificate-authority-data: '!'",
            "token: t",
            "its `certificate-authority-data` is no base64",
        );
        refused(
            "certificate-authority-data: YQ==",
            "token: t",
            "found 0 certificates in its `certificate-authority-data`",
        );
        refused(
            "certificate-authority: ca.crt",
            "token: t",
            "failed to read `/nowhere/ca.crt`, its `certificate-authority`",
        );
        refused(&ca(), "client-key-data: YQ==", "its user has a key without `client-certificate`");
        let good = config(&ca(), "token: t");
        for (from, to, expected) in [
            ("current-context: aks", "current-context: ''", "it has no `current-context`; choose one by"),
            ("current-context: aks", "current-context: b", "found no context `b`, expected one of aks"),
            ("cluster: c", "cluster: d", "found no cluster `d`, expected one of c"),
            ("user: u", "user: v", "found no user `v`, expected one of u"),
            ("server: 'https://10.0.0.1:6443', ", "", "its cluster names no server"),
            ("kind: Config", "kind: [", "3:"),
        ] {
            let error = parse(&good.replacen(from, to, 1)).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        assert_eq!(parse("").unwrap_err(), "it is empty");
    }

    #[test]
    fn base64_and_back() {
        for text in ["", "a", "ab", "abc", "abcd\n\u{fc}"] {
            assert_eq!(base64(&encode(text)).unwrap(), text.as_bytes());
        }
        assert_eq!(base64("YW\nJj"), Some(b"abc".to_vec()));
        assert_eq!(base64("a-b"), None);
    }

    #[test]
    fn a_pods_service_account() {
        let folder = tempfile::tempdir().unwrap();
        let access = || Access::in_pod(folder.path(), "fd00::1", "443", PATIENT);
        assert!(format!("{:#}", access().unwrap_err()).contains("failed to read `"));
        std::fs::write(folder.path().join("ca.crt"), Authority::new().pem()).unwrap();
        let access = access().unwrap();
        assert_eq!(access.client.base.to_string(), "https://[fd00::1]:443");
        let error = access.request("/".to_owned()).unwrap_err();
        assert!(error.to_string().starts_with("failed to read the token in `"), "{error}");
        std::fs::write(folder.path().join("token"), "abc\n").unwrap();
        assert_eq!(access.request("/".to_owned()).unwrap().headers[0].1, "Bearer abc");
        // Renewed while we run.
        std::fs::write(folder.path().join("token"), "def").unwrap();
        assert_eq!(access.request("/".to_owned()).unwrap().headers[0].1, "Bearer def");
        std::fs::write(folder.path().join("token"), "a\r\nX: y").unwrap();
        assert_eq!(
            access.request("/".to_owned()).unwrap_err().to_string(),
            "the token of the pod's service account is empty or no token"
        );
    }
}
