//! Which files with keys are taken, and why the others are not.

use super::*;

#[test]
fn several_keys_in_one_file() {
    let (one, two) = (keys::ed25519(), keys::p256());
    let authenticator = trusting(&[&format!("{}{}", one.public, two.public)]).unwrap();
    for pair in [&one, &two] {
        call(&authenticator, &sign(pair, &claims())).unwrap();
    }
}

#[test]
fn bad_pem_files() {
    let pair = keys::ed25519();
    let block = |tag: &str, bytes: &[u8]| pem::encode(&pem::Pem::new(tag, bytes));
    let p384 = {
        use aws_lc_rs::{encoding::*, signature::*};
        let key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        let der: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
        block("PUBLIC KEY", der.as_ref())
    };
    let small_rsa = {
        use aws_lc_rs::{encoding::*, signature::*};
        let n = [0xc5; 128];
        let der: PublicKeyX509Der<'_> =
            RsaPublicKeyComponents { n: &n[..], e: &[1, 0, 1][..] }.as_der().unwrap();
        block("PUBLIC KEY", der.as_ref())
    };
    for (text, reason) in [
        (pair.private.as_str(), "it holds a private key"),
        ("", "no usable public key"),
        ("-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----", "it is neither PEM nor JWKS"),
        (&block("CERTIFICATE", b"x"), "it holds a CERTIFICATE"),
        (&block("PUBLIC KEY", b"x"), "it holds no Ed25519, P-256 or RSA"),
        (&p384, "it holds no Ed25519, P-256 or RSA"),
        (&small_rsa, "it holds no Ed25519, P-256 or RSA (2048 to 8192 bits) public key"),
        (&pair.public.repeat(17), "more than 16 public keys"),
    ] {
        let refusal = refusal(&[text]);
        assert!(refusal.contains(reason), "{refusal}");
    }
    assert!(refusal(&[&pair.public.repeat(9), &pair.public.repeat(8)]).contains("more than 16"));
    let missing = Authenticator::from_config(&section(vec!["no/such.pem".into()]), clock());
    assert!(format!("{:#}", missing.unwrap_err()).starts_with("no/such.pem: No such file"));
}

#[test]
fn bad_jwks_files() {
    let pair = keys::ed25519();
    let with = |name: &str, value: &str| {
        let mut key = jwk(&pair, None);
        key[name] = json!(value);
        jwks(json!([key]))
    };
    let secret = json!([{ "kty": "oct", "k": "c2VjcmV0", "alg": "HS256" }]);
    for (text, reason) in [
        (with("d", "c2VjcmV0"), "keys[0] is a private key"),
        (jwks(secret), "keys[0]: is a shared secret"),
        (with("x", "c2VjcmV0"), "keys[0]: no public key for EdDSA"),
        (with("use", "enc"), "no usable public key"),
        (with("crv", "Ed448"), "no usable public key"),
        (jwks(json!([])), "no usable public key"),
        (jwks(json!(["c2VjcmV0"])), "keys[0]: is no JWK"),
        ("{}".into(), "it is no JWKS"),
        ("{".into(), "it is no JWKS"),
    ] {
        let refusal = refusal(&[&text]);
        assert!(refusal.contains(reason), "{refusal}");
        assert!(!refusal.contains("c2VjcmV0"), "{refusal}");
    }
    // Keys for something else are passed over.
    let rsa = keys::rsa();
    let mut other = jwk(&rsa, None);
    other["alg"] = json!("RSA-OAEP-256");
    let authenticator = trusting(&[&jwks(json!([other, jwk(&pair, None)]))]).unwrap();
    call(&authenticator, &sign(&pair, &claims())).unwrap();
    invalid(call(&authenticator, &sign(&rsa, &claims())));
}
