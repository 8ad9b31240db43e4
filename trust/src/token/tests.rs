use super::*;

const NOW: u64 = 1_790_000_000;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn claims() -> Claims {
    Claims {
        app: "chat".into(),
        user: "ann".into(),
        iat: NOW - 10,
        exp: NOW + 600,
        send: vec!["team".into()],
        ..Claims::default()
    }
}

fn signed(signer: &TokenSigner, header: &str, claims: &str) -> String {
    let message = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&signer.pkcs8).unwrap();
    let signature = BASE64.encode(pair.sign(message.as_bytes()));
    format!("{message}.{signature}")
}

#[test]
fn a_good_token_says_what_was_put_into_it() {
    let signer = TokenSigner::generate().unwrap();
    let token = signer.sign(&claims()).unwrap();
    assert_eq!(signer.keys().verify(&token, at(NOW)), Ok(claims()));
}

#[test]
fn a_token_of_another_issuer_with_the_standard_form_is_read() {
    // The header as other libraries write it: fields in another order, and further claims.
    let signer = TokenSigner::generate().unwrap().with_kid("auth-7");
    let body = r#"{"app":"chat","user":"ann","exp":1790000600,"aud":["x","tradewind"],"sub":"u"}"#;
    let token = signed(
        &signer,
        r#"{"kid":"auth-7","typ":"JWT","alg":"EdDSA"}"#,
        body,
    );
    let claims = signer.keys().verify(&token, at(NOW)).unwrap();
    assert_eq!((claims.user.as_str(), claims.exp), ("ann", 1_790_000_600));

    let other = body.replace("tradewind", "billing");
    let token = signed(&signer, r#"{"kid":"auth-7","alg":"EdDSA"}"#, &other);
    let refused = signer.keys().verify(&token, at(NOW));
    assert_eq!(refused, Err(TokenError::WrongAudience));
}

#[test]
fn the_signature_of_rfc_8037_is_accepted() {
    // The key and the JWS of RFC 8037, appendix A: it is no token of ours, and it is the claims
    // that are refused, so the signature was found right.
    let jwks = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k",
        "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    let keys = TokenKeys::from_jwks(jwks.as_bytes(), "rfc").unwrap();
    let key = keys.iter().next().unwrap().1;
    let jws = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    jwt::install();
    let decoded =
        jsonwebtoken::decode::<Claims>(jws, &DecodingKey::from_ed_der(key), &validation());
    assert!(matches!(decoded.unwrap_err().kind(), ErrorKind::Json(_)));
    let tampered = jws.replace("hgyY", "hgyZ");
    let decoded =
        jsonwebtoken::decode::<Claims>(tampered, &DecodingKey::from_ed_der(key), &validation());
    assert!(matches!(
        decoded.unwrap_err().kind(),
        ErrorKind::InvalidSignature
    ));
}

#[test]
fn times_are_judged_by_the_clock_handed_in_with_a_leeway_of_30_seconds() {
    let signer = TokenSigner::generate().unwrap();
    let keys = signer.keys();
    let claims = Claims {
        nbf: Some(NOW),
        ..claims()
    };
    let token = signer.sign(&claims).unwrap();
    assert!(keys.verify(&token, at(claims.exp + 30)).is_ok());
    assert_eq!(
        keys.verify(&token, at(claims.exp + 31)),
        Err(TokenError::Expired {
            by: Duration::from_secs(31)
        })
    );
    assert!(keys.verify(&token, at(NOW - 30)).is_ok());
    assert_eq!(
        keys.verify(&token, at(NOW - 31)),
        Err(TokenError::NotYetValid {
            wait: Duration::from_secs(31)
        })
    );
}

#[test]
fn every_way_of_being_wrong_has_an_answer_of_its_own() {
    let signer = TokenSigner::generate().unwrap();
    let stranger = TokenSigner::generate().unwrap();
    let keys = signer.keys();
    let verify = |token: &str| keys.verify(token, at(NOW)).unwrap_err();
    let token = signer.sign(&claims()).unwrap();

    assert_eq!(verify(&"x".repeat(5_000)), TokenError::TooLong(5_000));
    assert_eq!(
        verify(&stranger.sign(&claims()).unwrap()),
        TokenError::UnknownKey(stranger.kid().to_owned())
    );
    let forged = stranger.with_kid(signer.kid()).sign(&claims()).unwrap();
    assert_eq!(verify(&forged), TokenError::BadSignature);

    // Somebody else's claims under a good signature.
    let mut parts: Vec<_> = token.split('.').collect();
    let claims_of_root = BASE64.encode(r#"{"app":"chat","user":"root","exp":99999999999}"#);
    parts[1] = &claims_of_root;
    assert_eq!(verify(&parts.join(".")), TokenError::BadSignature);

    let body = serde_json::to_string(&claims()).unwrap();
    for alg in ["none", "HS256", "RS256", "ES256"] {
        let header = format!(r#"{{"alg":"{alg}","kid":"{}"}}"#, signer.kid());
        let token = signed(&signer, &header, &body);
        assert_eq!(verify(&token), TokenError::WrongAlgorithm(alg.into()));
    }

    let header = format!(r#"{{"alg":"EdDSA","kid":"{}"}}"#, signer.kid());
    let critical = header.replace('}', r#","crit":["b64"]}"#);
    for malformed in [
        "",
        "a.b",
        "....",
        "!.b.c",
        &format!("{token}.x"),
        &token[..token.len() - 90],
        &signed(&signer, r#"{"alg":"EdDSA"}"#, &body),
        &signed(&signer, &critical, &body),
        &signed(&signer, &header, "[]"),
        &signed(&signer, &header, r#"{"app":"chat","user":"ann"}"#),
        &signed(
            &signer,
            &header,
            r#"{"app":"","user":"ann","exp":99999999999}"#,
        ),
        &signed(
            &signer,
            &header,
            r#"{"app":"chat","user":"","exp":99999999999}"#,
        ),
        &signed(&signer, &header, r#"{"app":"chat","user":"a","exp":-1}"#),
    ] {
        let error = verify(malformed);
        let accepted = matches!(error, TokenError::Malformed(_) | TokenError::BadSignature);
        assert!(accepted, "{malformed}: {error:?}");
    }
    assert!(matches!(
        verify(&signed(&signer, &header, "[]")),
        TokenError::Malformed(_)
    ));
}

#[test]
fn no_change_of_a_single_character_passes() {
    let signer = TokenSigner::generate().unwrap();
    let keys = signer.keys();
    let token = signer.sign(&claims()).unwrap();
    for position in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[position] = if bytes[position] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).unwrap();
        assert!(keys.verify(&changed, at(NOW)).is_err(), "{position}");
    }
}

#[test]
fn a_token_too_long_for_relays_is_not_made() {
    let signer = TokenSigner::generate().unwrap();
    let claims = Claims {
        send: (0..1_000).map(|n| format!("group-{n}")).collect(),
        ..claims()
    };
    let error = signer.sign(&claims).unwrap_err().to_string();
    assert!(error.contains("4096") && error.contains("`*`"), "{error}");
    assert!(signer.sign(&Claims::default()).is_err());
}

#[test]
fn keys_are_rotated_by_holding_two_and_withdrawing_the_old_one() {
    let (old, new) = (
        TokenSigner::generate().unwrap(),
        TokenSigner::generate().unwrap(),
    );
    let mut keys = old.keys();
    keys.insert(new.kid(), new.public_key());
    let (old_token, new_token) = (old.sign(&claims()).unwrap(), new.sign(&claims()).unwrap());
    assert!(keys.verify(&old_token, at(NOW)).is_ok());
    assert!(keys.verify(&new_token, at(NOW)).is_ok());
    assert!(keys.remove(old.kid()));
    assert!(keys.verify(&old_token, at(NOW)).is_err());
    assert!(keys.verify(&new_token, at(NOW)).is_ok());
}

#[test]
fn keys_are_read_from_files_and_bad_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let signer = TokenSigner::generate().unwrap();
    signer.save(&path("sign.key"), false).unwrap();
    let again = TokenSigner::load(&path("sign.key")).unwrap();
    assert_eq!(
        (again.kid(), again.public_key()),
        (signer.kid(), signer.public_key())
    );
    assert!(matches!(
        signer.save(&path("sign.key"), false),
        Err(TrustError::Exists { .. })
    ));

    // The directory also holds the private key: only public keys' endings are looked at.
    std::fs::write(path("main.pem"), signer.public_key_pem()).unwrap();
    let jwks = format!(
        r#"{{"keys":[{{"kty":"RSA","n":"x"}},{{"kty":"OKP","crv":"Ed25519","kid":"web","x":"{}"}}]}}"#,
        BASE64.encode(signer.public_key())
    );
    std::fs::write(path("web.json"), jwks).unwrap();
    let keys = TokenKeys::load(dir.path()).unwrap();
    let mut kids: Vec<_> = keys.iter().map(|(kid, _)| kid.to_owned()).collect();
    let mut expected = vec![signer.kid().to_owned(), "main".to_owned(), "web".to_owned()];
    kids.sort();
    expected.sort();
    assert_eq!(kids, expected);
    for kid in &expected {
        let signer = TokenSigner::load(&path("sign.key")).unwrap().with_kid(kid);
        assert!(
            keys.verify(&signer.sign(&claims()).unwrap(), at(NOW))
                .is_ok()
        );
    }

    let error = TokenKeys::load(&path("none.pem")).unwrap_err().to_string();
    assert!(error.contains("none.pem does not exist"), "{error}");
    std::fs::write(path("web.json"), "{}").unwrap();
    let error = TokenKeys::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("web.json"), "{error}");
    // A private key put where public ones belong is not taken.
    let error = TokenKeys::load(&{
        std::fs::rename(path("sign.key"), path("sign.pem")).unwrap();
        path("sign.pem")
    });
    assert!(error.unwrap_err().to_string().contains("BEGIN PUBLIC KEY"));
}

#[test]
fn keys_that_other_tools_made_are_read() {
    // The pair of RFC 8410, 10.1 and 10.3: the form without the public half, as openssl writes it.
    let private = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
        -----END PRIVATE KEY-----\n";
    let public = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
        -----END PUBLIC KEY-----\n";
    let signer = TokenSigner::from_pem(private.as_bytes()).unwrap();
    assert_eq!(signer.public_key_pem(), public);
    let token = signer.sign(&claims()).unwrap();
    assert!(signer.keys().verify(&token, at(NOW)).is_ok());
}

#[test]
fn a_signer_does_not_show_its_key() {
    let signer = TokenSigner::generate().unwrap();
    let shown = format!("{signer:?}");
    assert!(shown.contains(signer.kid()) && shown.contains("[secret]"));
}
