//! Signed commitments. Stored before they are sent, and never replaced.

use super::{Db, DbError};
use alice_primitives::Commitment;
use codec::{DecodeAll, Encode};

/// A commitment with this server's signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestation {
    /// The signed commitment.
    pub commitment: Commitment,
    /// Attestation round of the epoch: the number of times that it was reopened.
    pub round: u32,
    /// Signature over [`Commitment::attest_payload`].
    pub signature: [u8; 64],
}

impl Db {
    /// The attestation of an epoch and round, if one was ever signed.
    pub async fn attestation(&self, epoch: u32, round: u32) -> Result<Option<Attestation>, DbError> {
        let row: Option<(Vec<u8>, Vec<u8>)> =
            sqlx::query_as("SELECT commitment, signature FROM attestations WHERE epoch = ? AND round = ?")
                .bind(epoch)
                .bind(round)
                .fetch_optional(&self.pool)
                .await?;
        let Some((commitment, signature)) = row else {
            return Ok(None);
        };
        let damaged = |problem: String| DbError::Damaged {
            what: "a signed commitment",
            problem,
        };
        let commitment = Commitment::decode_all(&mut &commitment[..]).map_err(|e| damaged(e.to_string()))?;
        let signature = <[u8; 64]>::try_from(signature).map_err(|_| damaged("signature of a wrong size".into()))?;
        Ok(Some(Attestation {
            commitment,
            round,
            signature,
        }))
    }

    /// Stores an attestation unless there is one for its epoch and round, and returns the stored one: that, and no
    /// other, may be sent.
    pub async fn store_attestation(&self, new: &Attestation) -> Result<Attestation, DbError> {
        let _guard = self.write().await;
        let epoch = new.commitment.epoch;
        sqlx::query(
            "INSERT INTO attestations (epoch, round, commitment, signature) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(epoch)
        .bind(new.round)
        .bind(new.commitment.encode())
        .bind(&new.signature[..])
        .execute(&self.pool)
        .await?;
        // Read back under the lock: if there was one already, that is the one to send.
        let stored = self.attestation(epoch, new.round).await?;
        stored.ok_or(DbError::Damaged {
            what: "a signed commitment",
            problem: "it is not there after it was stored".into(),
        })
    }
}
