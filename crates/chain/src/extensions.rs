//! General transactions (extrinsic format 5) that nobody signs: the call carries its own signatures or proofs, and the
//! runtime's `AuthorizeCall` extension admits it after checking them. No account, no nonce, no fee.
//!
//! Bytes: compact length ‖ `0x45` ‖ extension version ‖ explicit parts of the extensions in the runtime's order ‖ call.

use subxt::ext::frame_decode::extrinsics::{
    ExtrinsicEncodeError, ExtrinsicTypeInfo, TransactionExtensions, TransactionExtensionsError,
    best_v5_general_transaction_extension_version, encode_v5_general,
};
use subxt::ext::scale_encode::EncodeAsFields;
use subxt::ext::scale_type_resolver::TypeResolver;

/// Values of the transaction extensions for a transaction that nobody signs. Extensions without bytes (`AuthorizeCall`,
/// `CheckWeight` …) need no entry, whatever their names.
pub(crate) struct Unsigned;

impl Unsigned {
    /// The neutral value: no account, so no nonce, no tip and no mortality; no metadata hash.
    fn neutral(name: &str) -> Option<&'static [u8]> {
        match name {
            "CheckMortality" => Some(&[0]),           // Era::Immortal; the call is valid once anyway
            "CheckNonce" => Some(&[0]),               // Compact(0); ignored without a signer
            "ChargeTransactionPayment" => Some(&[0]), // Compact(0) tip; not charged without a signer
            "CheckMetadataHash" => Some(&[0]),        // Mode::Disabled
            // Only an implicit part, which is signed over and never sent.
            "CheckSpecVersion" | "CheckTxVersion" | "CheckGenesis" => Some(&[]),
            _ => None,
        }
    }
}

impl<R: TypeResolver> TransactionExtensions<R> for Unsigned {
    fn contains_extension(&self, name: &str) -> bool {
        Self::neutral(name).is_some()
    }

    fn encode_extension_value_to(
        &self,
        name: &str,
        _type_id: R::TypeId,
        _types: &R,
        out: &mut Vec<u8>,
    ) -> Result<(), TransactionExtensionsError> {
        let value = Self::neutral(name).ok_or_else(|| TransactionExtensionsError::NotFound(name.to_owned()))?;
        out.extend_from_slice(value);
        Ok(())
    }

    fn encode_extension_implicit_to(
        &self,
        name: &str,
        _type_id: R::TypeId,
        _types: &R,
        _out: &mut Vec<u8>,
    ) -> Result<(), TransactionExtensionsError> {
        // Implicit parts are only signed over, and nothing is signed here.
        Err(TransactionExtensionsError::NotFound(name.to_owned()))
    }
}

/// Encodes an unsigned general transaction for the runtime that `info` describes, with its length in front.
pub(crate) fn general<Args, Info, R>(
    pallet: &str,
    call: &str,
    args: &Args,
    info: &Info,
    types: &R,
) -> Result<Vec<u8>, ExtrinsicEncodeError>
where
    Args: EncodeAsFields,
    Info: ExtrinsicTypeInfo,
    Info::TypeId: Clone,
    R: TypeResolver<TypeId = Info::TypeId>,
{
    let version = best_v5_general_transaction_extension_version(&Unsigned, info, types)?;
    encode_v5_general(pallet, call, args, version, &Unsigned, info, types)
}

#[cfg(test)]
mod tests {
    use super::*;
    use scale_info::{MetaType, PortableRegistry, Registry, TypeInfo};
    use std::borrow::Cow;
    use subxt::ext::frame_decode::extrinsics::{
        ExtrinsicCallInfo, ExtrinsicCallInfoArg, ExtrinsicExtensionInfo, ExtrinsicExtensionInfoArg,
        encode_v5_general_with_info_to,
    };

    #[derive(TypeInfo)]
    struct Empty;
    #[derive(TypeInfo)]
    struct Mode(#[allow(dead_code)] u8);

    /// Extensions of the runtime in its order: name, whether it has explicit bytes, whether it has implicit ones.
    const RUNTIME: [(&str, bool, bool); 11] = [
        ("AuthorizeCall", false, false),
        ("CheckNonZeroSender", false, false),
        ("CheckSpecVersion", false, true),
        ("CheckTxVersion", false, true),
        ("CheckGenesis", false, true),
        ("CheckMortality", true, true),
        ("CheckNonce", true, false),
        ("CheckWeight", false, false),
        ("ChargeTransactionPayment", true, false),
        ("CheckMetadataHash", true, true),
        ("WeightReclaim", false, false),
    ];

    fn encode(extensions: &[(&'static str, bool, bool)]) -> Result<Vec<u8>, ExtrinsicEncodeError> {
        let mut registry = Registry::new();
        let (empty, mode) = (MetaType::new::<Empty>(), MetaType::new::<Mode>());
        let (empty, mode) = (registry.register_type(&empty).id, registry.register_type(&mode).id);
        let number = registry.register_type(&MetaType::new::<u32>()).id;
        let types = PortableRegistry::from(registry);
        let argument = ExtrinsicCallInfoArg {
            name: Cow::Borrowed("epoch"),
            id: number,
        };
        let call = ExtrinsicCallInfo {
            pallet_index: 21,
            call_index: 3,
            pallet_name: Cow::Borrowed("Epoch"),
            call_name: Cow::Borrowed("attest"),
            args: vec![argument],
        };
        let id = |some| if some { mode } else { empty };
        let extension_ids = extensions
            .iter()
            .map(|(name, explicit, implicit)| ExtrinsicExtensionInfoArg {
                name: Cow::Borrowed(*name),
                id: id(*explicit),
                implicit_id: id(*implicit),
            })
            .collect();
        let mut out = Vec::new();
        encode_v5_general_with_info_to(
            &(7u32,),
            0,
            &Unsigned,
            &types,
            &call,
            &ExtrinsicExtensionInfo { extension_ids },
            &mut out,
        )?;
        Ok(out)
    }

    #[test]
    fn general_transaction_should_have_these_bytes() {
        let expected = [
            &[12 << 2][..],       // compact length
            &[0b0100_0101, 0],    // general transaction of format 5, extension version 0
            &[0, 0, 0, 0],        // immortal, nonce 0, tip 0, no metadata hash
            &[21, 3, 7, 0, 0, 0], // pallet, call, argument
        ];
        assert_eq!(hex::encode(encode(&RUNTIME).unwrap()), hex::encode(expected.concat()));
    }

    #[test]
    fn unknown_extensions_should_fail_only_where_they_have_bytes() {
        assert!(encode(&[("Novelty", false, false)]).is_ok());
        let error = encode(&[("Novelty", true, false)]).unwrap_err().to_string();
        assert!(error.contains("Novelty"), "{error}");
    }

    #[test]
    fn every_extension_with_implicit_bytes_should_be_known() {
        // Otherwise no extension version would be found good enough.
        for (name, explicit, implicit) in RUNTIME {
            let known = TransactionExtensions::<PortableRegistry>::contains_extension(&Unsigned, name);
            assert!(known || !(explicit || implicit), "{name}");
        }
    }
}
