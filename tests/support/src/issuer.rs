//! An issuer of tokens that publishes its keys over HTTPS, as identity providers do.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use keypool_service::token::SigningKey;
use pem::Pem;
use rcgen::ExtendedKeyUsagePurpose;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs::default_provider,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

use crate::{
    server::ServerOptions,
    tls::Ca,
    tokens::{token_of, token_request},
};

/// A key with its name.
#[derive(Debug)]
pub struct IssuerKey {
    id: String,
    key: SigningKey,
    private_pem: String,
    x: String,
}

impl IssuerKey {
    /// A new Ed25519 key of this name.
    pub fn new(id: &str) -> Self {
        use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
        let pair = Ed25519KeyPair::generate().expect("randomness");
        let private = pair.to_pkcs8v1().expect("its encoding");
        let pem = pem::encode(&Pem::new("PRIVATE KEY", private.as_ref()));
        Self {
            id: id.into(),
            key: SigningKey::from_pem(&pem).expect("a key"),
            private_pem: pem,
            x: URL_SAFE_NO_PAD.encode(pair.public_key().as_ref()),
        }
    }

    /// A token of this key with all scopes.
    pub fn token(&self, user_id: &str, client_id: &str) -> String {
        let mut request = token_request(user_id, client_id);
        request.key_id = Some(self.id.clone());
        token_of(&self.key, &request)
    }

    /// Its private half in PEM, for tokens that no issuer would make.
    pub fn private_pem(&self) -> &str {
        &self.private_pem
    }

    /// Its public half (RFC 8037).
    pub fn jwk(&self) -> Value {
        json!({ "kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": self.id, "x": self.x })
    }
}

/// Serves a JWKS document until it is dropped.
#[derive(Debug)]
pub struct Issuer {
    /// Whom to believe that it is this issuer.
    pub ca: Ca,
    address: SocketAddr,
    answer: Arc<Mutex<Answer>>,
    asked: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

#[derive(Debug, Clone)]
struct Answer {
    code: u16,
    body: String,
}

impl Issuer {
    /// With these keys.
    pub async fn publishing(keys: &[&IssuerKey]) -> Self {
        let ca = Ca::new();
        let (certificate, key) = ca.issue("localhost", ExtendedKeyUsagePurpose::ServerAuth);
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a certificate");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its number");
        let answer = Arc::new(Mutex::new(Answer { code: 200, body: String::new() }));
        let asked = Arc::new(AtomicUsize::new(0));
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let task = tokio::spawn(serve(listener, acceptor, answer.clone(), asked.clone()));
        let issuer = Self { ca, address, answer, asked, task };
        issuer.publish(keys);
        issuer
    }

    /// Publishes these keys and no others from now on.
    pub fn publish(&self, keys: &[&IssuerKey]) {
        let keys: Vec<Value> = keys.iter().map(|key| key.jwk()).collect();
        self.answer_with(200, &json!({ "keys": keys }).to_string());
    }

    /// Answers this from now on.
    pub fn answer_with(&self, code: u16, body: &str) {
        *self.answer.lock().expect("a whole answer") = Answer { code, body: body.into() };
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// `options` for a server that trusts this issuer and no file; `ca` holds its CA.
    pub fn configure(&self, options: ServerOptions, ca: &std::path::Path) -> ServerOptions {
        std::fs::write(ca, &self.ca.pem).expect("a file");
        options
            .without("auth.keys")
            .text("auth.jwks_url", format!("https://localhost:{}/keys", self.address.port()))
            .text("auth.jwks_ca", ca.to_str().expect("a UTF-8 path"))
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    answer: Arc<Mutex<Answer>>,
    asked: Arc<AtomicUsize>,
) {
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        let Ok(mut stream) = acceptor.accept(stream).await else { continue };
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => request.push(byte),
                Err(_) => break,
            }
        }
        if !request.starts_with(b"GET /keys HTTP/1.1\r\n") {
            continue;
        }
        asked.fetch_add(1, Ordering::SeqCst);
        let Answer { code, body } = answer.lock().expect("a whole answer").clone();
        let head = format!("HTTP/1.1 {code} x\r\ncontent-length: {}\r\n\r\n", body.len());
        let _ = stream.write_all((head + &body).as_bytes()).await;
        let _ = stream.shutdown().await;
    }
}
