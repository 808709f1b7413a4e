"""A test CA, and certificates of localhost that it vouches for or not."""

import datetime
import ipaddress
import os
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

# What each certificate says: hosts, signed by the CA, days from now that it
# begins and ends.
CERTIFICATES = {
    "right": (("localhost", "127.0.0.1"), True, -1, 365),
    "other-host": (("kms.example.com",), True, -1, 365),
    "expired": (("localhost", "127.0.0.1"), True, -30, -1),
    "self-signed": (("localhost", "127.0.0.1"), False, -1, 365),
}


def name(common):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def builder(subject, issuer, public_key, begins, ends):
    now = datetime.datetime.utcnow()
    return (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
            .public_key(public_key).serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=begins))
            .not_valid_after(now + datetime.timedelta(days=ends)))


def make_ca():
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = (builder(name("test CA"), name("test CA"), key.public_key(), -60, 3650)
                   .add_extension(x509.BasicConstraints(True, 0), True)
                   .add_extension(usage, True).sign(key, hashes.SHA256()))
    return key, certificate


def alternative(host):
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def make_certificate(ca, hosts, signed, begins, ends):
    ca_key, ca_certificate = ca
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = ca_certificate.subject if signed else name(hosts[0])
    certificate = (builder(name(hosts[0]), issuer, key.public_key(), begins, ends)
                   .add_extension(x509.SubjectAlternativeName(
                       [alternative(host) for host in hosts]), False)
                   .add_extension(x509.BasicConstraints(False, None), True)
                   .sign(ca_key if signed else key, hashes.SHA256()))
    return key, certificate


def write(path, *objects):
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        for item in objects:
            if isinstance(item, x509.Certificate):
                file.write(item.public_bytes(serialization.Encoding.PEM))
            else:
                file.write(item.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption()))


def make_certificates(folder):
    """ca.pem and NAME.pem in the folder, unless they are there."""
    if os.path.exists(f"{folder}/self-signed.pem"):
        return
    ca = make_ca()
    write(f"{folder}/ca.pem", ca[1])
    for label, rules in CERTIFICATES.items():
        write(f"{folder}/{label}.pem", *make_certificate(ca, *rules))


def contexts(folder):
    found = {}
    for label in CERTIFICATES:
        found[label] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        found[label].minimum_version = ssl.TLSVersion.TLSv1_2
        found[label].load_cert_chain(f"{folder}/{label}.pem")
    return found
