//! Signatures, as Standard Webhooks (<https://www.standardwebhooks.com>) has them: libraries that verify
//! them exist for most languages.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ring::hmac;

/// The signature of a call: `v1,` and the HMAC-SHA256 of id, `.`, Unix seconds, `.` and body, in Base64.
pub(super) fn sign(secret: &[u8], id: &str, unix_s: u64, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let mut context = hmac::Context::with_key(&key);
    context.update(format!("{id}.{unix_s}.").as_bytes());
    context.update(body);
    format!("v1,{}", BASE64_STANDARD.encode(context.sign()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's own libraries.
    #[test]
    fn it_is_the_one_that_others_come_to() {
        let secret = BASE64_STANDARD
            .decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
            .unwrap();
        let signature = sign(
            &secret,
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
