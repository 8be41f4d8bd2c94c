//! Tokens for the servers of a test, and who issues them.

use std::{sync::LazyLock, time::Duration};

use aws_lc_rs::{
    encoding::{AsDer as _, PublicKeyX509Der},
    signature::{Ed25519KeyPair, KeyPair as _},
};
use keypool_service::{
    domain::{
        clock::{Clock as _, SystemClock},
        ids::{ClientId, ClientKey, UserId},
    },
    grpc::auth::Scope,
    token::{SigningKey, TokenRequest},
};
use pem::Pem;
use tonic::Request;

/// Who issues the tokens of a test: a key made by this process.
struct Issuer {
    key: SigningKey,
    private_pem: String,
    public_pem: String,
}

static ISSUER: LazyLock<Issuer> = LazyLock::new(|| {
    let pair = Ed25519KeyPair::generate().expect("randomness");
    let private = pair.to_pkcs8v1().expect("its encoding");
    let public: PublicKeyX509Der<'_> = pair.public_key().as_der().expect("its encoding");
    let private_pem = pem::encode(&Pem::new("PRIVATE KEY", private.as_ref()));
    Issuer {
        key: SigningKey::from_pem(&private_pem).expect("a key"),
        private_pem,
        public_pem: pem::encode(&Pem::new("PUBLIC KEY", public.as_ref())),
    }
});

/// The key that signs them, Ed25519 in PEM, for tokens that no issuer would make.
pub fn issuer_private_key() -> &'static str {
    &ISSUER.private_pem
}

/// The public half of the key that signs them, in PEM.
pub fn issuer_public_key() -> &'static str {
    &ISSUER.public_pem
}

/// A token for every server of this process, with all scopes.
pub fn token(user_id: &str, client_id: &str) -> String {
    issue(&token_request(user_id, client_id))
}

/// A token for every server of this process, with these scopes.
pub fn token_with(user_id: &str, client_id: &str, scopes: &[Scope]) -> String {
    let request = TokenRequest { scopes: scopes.to_vec(), ..token_request(user_id, client_id) };
    issue(&request)
}

/// A token for every server of this process whose configuration fits, as `request` asks for it.
pub fn issue(request: &TokenRequest) -> String {
    token_of(&ISSUER.key, request)
}

/// A token with all scopes that was valid until an hour ago.
pub fn expired_token(user_id: &str, client_id: &str) -> String {
    let then = SystemClock.now() - time::Duration::hours(2);
    ISSUER.key.mint(&token_request(user_id, client_id), then).expect("a token")
}

/// The token that `request` asks for, signed with `key`; valid from now on.
pub fn token_of(key: &SigningKey, request: &TokenRequest) -> String {
    key.mint(request, SystemClock.now()).expect("a token")
}

/// All scopes, for an hour.
pub fn token_request(user_id: &str, client_id: &str) -> TokenRequest {
    TokenRequest {
        key: ClientKey {
            user: UserId::parse(user_id).expect("a user id"),
            client: ClientId::parse(client_id).expect("a client id"),
        },
        scopes: Scope::ALL.to_vec(),
        ttl: Duration::from_secs(3600),
        audience: "keypool".into(),
        issuer: None,
        key_id: None,
    }
}

/// A call with a token.
pub fn authorized<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {token}").parse().expect("a token is ASCII");
    request.metadata_mut().insert("authorization", value);
    request
}
