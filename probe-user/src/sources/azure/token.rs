//! Tokens for ARM: of a workload identity, else of the node's managed identity.
//!
//! A token lives in memory, is shown nowhere and stored nowhere.

use std::{
    fmt,
    path::PathBuf,
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::sources::http::{self, Body, Client, Request, escape};

/// A token that ends so soon is not used any more.
const MARGIN: Duration = Duration::from_mins(1);

/// Who plsprobe is to Azure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A pod's workload identity: its service account's token is exchanged for one of Microsoft Entra.
    Workload {
        /// The service account's token.
        token_file: PathBuf,
        /// The application's or the managed identity's client id.
        client_id: String,
        /// The tenant.
        tenant_id: String,
    },
    /// A managed identity of the node: the one with this client id, or its only one.
    Managed {
        /// Which.
        client_id: Option<String>,
    },
}

impl Identity {
    /// By the environment, as Azure's own libraries read it; `assigned` is the node's identity by `azure.json`.
    pub fn from_environment(assigned: Option<&str>, variable: impl Fn(&str) -> Option<String>) -> Self {
        let variable = |name| variable(name).filter(|value| !value.is_empty());
        let client_id = variable("AZURE_CLIENT_ID");
        match (variable("AZURE_FEDERATED_TOKEN_FILE"), &client_id, variable("AZURE_TENANT_ID")) {
            (Some(file), Some(client_id), Some(tenant_id)) => {
                Self::Workload { token_file: file.into(), client_id: client_id.clone(), tenant_id }
            }
            _ => Self::Managed { client_id: client_id.or(assigned.map(str::to_owned)) },
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload { client_id, .. } => write!(f, "workload identity {client_id}"),
            Self::Managed { client_id: Some(client_id) } => write!(f, "managed identity {client_id}"),
            Self::Managed { client_id: None } => f.write_str("the node's managed identity"),
        }
    }
}

/// Gives tokens, and keeps the last while it lasts.
pub struct Tokens {
    /// Who asks.
    pub identity: Identity,
    /// The instance metadata service.
    pub imds: Client,
    /// Microsoft Entra.
    pub authority: Client,
    /// What the token is for: ARM's address, with `/` at its end.
    pub resource: String,
    last: Mutex<Option<(String, Instant)>>,
}

/// The answer of either.
#[derive(Deserialize)]
struct Answer {
    access_token: String,
    /// Seconds, as a number or, from the instance metadata service, as text.
    expires_in: Seconds,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Seconds {
    Number(u64),
    Text(String),
}

impl Tokens {
    /// Nothing is asked yet.
    pub fn new(identity: Identity, imds: Client, authority: Client, resource: String) -> Self {
        Self { identity, imds, authority, resource, last: Mutex::default() }
    }

    /// A token that lasts a while.
    ///
    /// # Errors
    ///
    /// If none is given: with who was asked, what was said, and what to do.
    pub fn token(&self) -> Result<String> {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((token, until)) = last.as_ref().filter(|(_, until)| *until > Instant::now()) {
            let _ = until;
            return Ok(token.clone());
        }
        let answer = self.ask()?;
        let seconds = match answer.expires_in {
            Seconds::Number(seconds) => Some(seconds),
            Seconds::Text(text) => text.parse().ok(),
        };
        let lasts = Duration::from_secs(seconds.context("the token's `expires_in` is no number")?);
        *last = Some((answer.access_token.clone(), Instant::now() + lasts.saturating_sub(MARGIN)));
        Ok(answer.access_token)
    }

    /// Forgets the token: it was refused.
    pub fn forget(&self) {
        *self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    }

    fn ask(&self) -> Result<Answer> {
        let (client, request) = match &self.identity {
            Identity::Workload { token_file, client_id, tenant_id } => {
                let shown = token_file.display();
                let assertion = std::fs::read_to_string(token_file)
                    .with_context(|| format!("failed to read the service account's token in `{shown}`"))?;
                (&self.authority, exchange(&assertion, client_id, tenant_id, &self.resource))
            }
            Identity::Managed { client_id } => (&self.imds, managed(client_id.as_deref(), &self.resource)),
        };
        let body = client.send(&request).map_err(|error| {
            let advice = self.advice(&error);
            anyhow::anyhow!("no token for {}: {error}{advice}", self.identity)
        })?;
        // What cannot be read may still be a token: it is not repeated.
        let answer: Result<Answer, _> = serde_json::from_slice(&body);
        let answer = answer.map_err(|_| {
            anyhow::anyhow!(
                "{}: found no token in the answer, expected `access_token` and `expires_in`",
                client.base
            )
        })?;
        let is_plain =
            answer.access_token.bytes().all(|b| b.is_ascii_graphic()) && !answer.access_token.is_empty();
        anyhow::ensure!(is_plain, "{}: found a token that is none", client.base);
        Ok(answer)
    }

    fn advice(&self, error: &http::Error) -> &'static str {
        match (&self.identity, &error.why) {
            (Identity::Managed { .. }, http::Why::Unreachable(_) | http::Why::TimedOut(_)) => {
                "; the instance metadata service answers on Azure's machines alone, and on AKS where it is not restricted: \
                 run plsprobe on the node's network, or with a workload identity"
            }
            (Identity::Managed { .. }, http::Why::Status { status: 400, .. }) => {
                "; if the node has several identities, say which by AZURE_CLIENT_ID"
            }
            (Identity::Workload { .. }, http::Why::Status { status: 400 | 401, .. }) => {
                "; is the service account among the identity's federated credentials?"
            }
            _ => "",
        }
    }
}

/// Source: Azure's documentation, "How to use managed identities on an Azure VM to acquire an access token".
fn managed(client_id: Option<&str>, resource: &str) -> Request {
    let mut path =
        format!("/metadata/identity/oauth2/token?api-version=2018-02-01&resource={}", escape(resource));
    if let Some(client_id) = client_id {
        path.extend(["&client_id=", &escape(client_id)]);
    }
    Request::get(path).with("Metadata", "true")
}

/// Source: Microsoft's documentation, "Microsoft identity platform and the OAuth 2.0 client credentials flow", federated.
fn exchange(assertion: &str, client_id: &str, tenant_id: &str, resource: &str) -> Request {
    let fields = [
        ("grant_type", "client_credentials"),
        ("client_id", client_id),
        ("scope", &format!("{resource}.default")),
        ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
        ("client_assertion", assertion.trim()),
    ];
    let form = fields.map(|(name, value)| format!("{name}={}", escape(value))).join("&");
    Request {
        body: Some(Body::form(form)),
        ..Request::get(format!("/{}/oauth2/v2.0/token", escape(tenant_id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::http::testing::{Reply, Seen, Server};

    /// The instance metadata service as it is documented: nothing without its header.
    fn imds(reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Server {
        Server::start(move |seen| {
            if seen.header("metadata") != Some("true") {
                return Reply::json(
                    "400 Bad Request",
                    r#"{"error":"invalid_request","error_description":"Required metadata header not specified"}"#,
                );
            }
            reply(seen)
        })
    }

    fn tokens(server: &Server, identity: Identity) -> Tokens {
        Tokens::new(identity, server.client(), server.client(), "https://management.azure.com/".to_owned())
    }

    fn managed_identity(client_id: Option<&str>) -> Identity {
        Identity::Managed { client_id: client_id.map(str::to_owned) }
    }

    fn refused(server: &Server, identity: Identity) -> String {
        let error = tokens(server, identity).token().unwrap_err();
        format!("{error:#}").replace(&server.url("http"), "http://SERVER")
    }

    #[test]
    fn a_managed_identity() {
        let server =
            imds(|_| Reply::ok(r#"{"access_token":"one","expires_in":"3599","token_type":"Bearer"}"#));
        let tokens = tokens(&server, managed_identity(Some("a b")));
        assert_eq!((tokens.token().unwrap(), tokens.token().unwrap()), ("one".to_owned(), "one".to_owned()));
        let [seen] = &server.seen()[..] else { panic!("asked once") };
        assert_eq!(
            seen.path,
            "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fmanagement.azure.com%2F&client_id=a%20b"
        );
        tokens.forget();
        tokens.token().unwrap();
        assert_eq!(server.seen().len(), 2);
        // Without the header there is nothing to be had, as documented.
        let error = server.client().send(&Request::get("/metadata/instance")).unwrap_err();
        assert!(
            error.to_string().ends_with("status 400 Bad Request: Required metadata header not specified"),
            "{error}"
        );
    }

    #[test]
    fn a_token_that_ends_is_asked_for_anew() {
        let server = imds(|_| Reply::ok(r#"{"access_token":"one","expires_in":"59"}"#));
        let tokens = tokens(&server, managed_identity(None));
        tokens.token().unwrap();
        tokens.token().unwrap();
        assert_eq!(server.seen().len(), 2);
        assert_eq!(server.seen()[0].query("client_id"), None);
    }

    #[test]
    fn a_workload_identity() {
        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("token");
        let identity = Identity::Workload {
            token_file: token_file.clone(),
            client_id: "c".to_owned(),
            tenant_id: "t".to_owned(),
        };
        let server = Server::start(|_| Reply::ok(r#"{"access_token":"two","expires_in":3599}"#));
        assert!(
            refused(&server, identity.clone()).starts_with("failed to read the service account's token in `")
        );
        std::fs::write(&token_file, "ey.J+\n").unwrap();
        assert_eq!(tokens(&server, identity).token().unwrap(), "two");
        let [seen] = &server.seen()[..] else { panic!("asked once") };
        assert_eq!((seen.method.as_str(), seen.path.as_str()), ("POST", "/t/oauth2/v2.0/token"));
        assert_eq!(
            seen.body,
            "grant_type=client_credentials&client_id=c&scope=https%3A%2F%2Fmanagement.azure.com%2F.default\
             &client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer&client_assertion=ey.J%2B"
        );
    }

    #[test]
    fn who_is_asked() {
        let environment = |known: &'static [(&str, &str)]| {
            move |name: &str| known.iter().find(|(own, _)| *own == name).map(|(_, value)| (*value).to_owned())
        };
        let of = |known, assigned| Identity::from_environment(assigned, environment(known)).to_string();
        assert_eq!(of(&[], None), "the node's managed identity");
        assert_eq!(of(&[], Some("kubelet")), "managed identity kubelet");
        assert_eq!(of(&[("AZURE_CLIENT_ID", "mine")], Some("kubelet")), "managed identity mine");
        assert_eq!(
            of(
                &[
                    ("AZURE_CLIENT_ID", "mine"),
                    ("AZURE_TENANT_ID", "t"),
                    ("AZURE_FEDERATED_TOKEN_FILE", "/f")
                ],
                Some("kubelet")
            ),
            "workload identity mine"
        );
        assert_eq!(
            of(&[("AZURE_CLIENT_ID", "mine"), ("AZURE_FEDERATED_TOKEN_FILE", "/f")], None),
            "managed identity mine"
        );
    }

    #[test]
    fn what_is_refused() {
        let several = imds(|_| {
            Reply::json(
                "400 Bad Request",
                r#"{"error":"invalid_request","error_description":"Multiple user assigned identities exist, please specify the clientId / resourceId"}"#,
            )
        });
        assert_eq!(
            refused(&several, managed_identity(None)),
            "no token for the node's managed identity: GET http://SERVER/metadata/identity/oauth2/token: status 400 Bad Request: \
             Multiple user assigned identities exist, please specify the clientId / resourceId; \
             if the node has several identities, say which by AZURE_CLIENT_ID"
        );
        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("token");
        std::fs::write(&token_file, "assertion").unwrap();
        let identity =
            Identity::Workload { token_file, client_id: "c".to_owned(), tenant_id: "t".to_owned() };
        let entra = Server::start(|_| {
            Reply::json(
                "401 Unauthorized",
                r#"{"error":"invalid_client","error_description":"AADSTS700213: No matching federated identity record found.\r\nTrace ID: x"}"#,
            )
        });
        assert_eq!(
            refused(&entra, identity),
            "no token for workload identity c: POST http://SERVER/t/oauth2/v2.0/token: status 401 Unauthorized: \
             AADSTS700213: No matching federated identity record found.; is the service account among the identity's federated credentials?"
        );
    }

    #[test]
    fn an_answer_that_is_no_token_is_not_repeated() {
        for body in [
            "{\"access_tokn\":\"secret\"}",
            "secret",
            "{\"access_token\":\"secret\"}",
            "{\"access_token\":\"sec\\r\\nret\",\"expires_in\":1}",
            "{\"access_token\":\"secret\",\"expires_in\":\"soon\"}",
        ] {
            let server = imds(move |_| Reply::ok(body));
            let text = refused(&server, managed_identity(None));
            assert!(
                !text.contains("sec")
                    && (text.contains("found ") || text.contains("`expires_in` is no number")),
                "{text}"
            );
        }
    }
}
