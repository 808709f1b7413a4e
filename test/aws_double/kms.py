"""KMS: its actions, with the rules that its documentation gives.

Parameters are checked against the model of the service that botocore has, and
are refused where the service would refuse them; unknown ones too.  Sources:
the API reference, and "Key states of AWS KMS keys" in the developer guide."""

import base64
import binascii
import fnmatch
import json
import re
import time
import uuid

import botocore.loaders
import botocore.model
import botocore.validate

from . import material
from .basics import ApiError

BLOBS = {"CiphertextBlob", "Plaintext", "Message"}
SPECS = {"SYMMETRIC_DEFAULT": ("ENCRYPT_DECRYPT", material.new_symmetric),
         "ECC_NIST_P256": ("SIGN_VERIFY", material.new_pair)}
TAG = re.compile(r"[\w .:/=+\-@]*")
MAX_TAGS = 50
FIRST_POLICY = '{"Version":"2012-10-17","Statement":[]}'


def invalid_parameter(message):
    return ApiError("ValidationException", message)


def check_tags(tags):
    names = [tag["TagKey"] for tag in tags]
    if len(set(names)) != len(names):
        raise ApiError("TagException", "Duplicate tag keys")
    for tag in tags:
        name, value = tag["TagKey"], tag["TagValue"]
        if name.lower().startswith("aws:"):
            raise ApiError("TagException", "Tag keys beginning with aws: are reserved")
        if not (TAG.fullmatch(name) and TAG.fullmatch(value)) or len(name) > 128 or len(value) > 256:
            raise ApiError("TagException", "Tag is not valid")


def check_policy(text):
    try:
        if len(text) > 32768 or "Statement" not in json.loads(text):
            raise ValueError
    except (ValueError, TypeError):
        raise ApiError("MalformedPolicyDocumentException",
                       "The policy is not a policy") from None


def page(items, limit, marker, name):
    """Items from the marker on, and what the answer says of the rest."""
    start = 0
    if marker is not None:
        try:
            start = int(base64.b64decode(marker, validate=True).decode().removeprefix("page:"))
        except ValueError:
            raise ApiError("InvalidMarkerException", "Could not deserialize marker") from None
    answer = {name: items[start:start + limit], "Truncated": start + limit < len(items)}
    if answer["Truncated"]:
        answer["NextMarker"] = base64.b64encode(f"page:{start + limit}".encode()).decode()
    return answer


class Kms:
    def __init__(self, store, place):
        self.store = store
        self.place = place          # partition, region, account
        self.at_once = False        # windows are over as soon as they begin
        self.max_keys = None
        self.max_page = None
        self.tag_lag = 0.0          # seconds until policies know what tags say
        self.tag_actions = []       # which then are refused, whatever the policy
        self.model = botocore.model.ServiceModel(
            botocore.loaders.Loader().load_service_model("kms", "service-2"))
        self.shapes = {}

    # what a request says

    def parse(self, action, body):
        shape = self.shapes.get(action)
        if shape is None:
            if not hasattr(self, action) or action not in self.model.operation_names:
                raise ApiError("UnknownOperationException", None)
            shape = self.shapes[action] = self.model.operation_model(action).input_shape
        try:
            values = json.loads(body.decode())
            if not isinstance(values, dict):
                raise ValueError
            for name in BLOBS & values.keys():
                values[name] = base64.b64decode(values[name], validate=True)
        except (ValueError, TypeError, binascii.Error, RecursionError):
            raise ApiError("SerializationException", None) from None
        report = botocore.validate.ParamValidator().validate(values, shape)
        if report.has_errors():
            raise invalid_parameter("1 validation error detected: " + report.generate_report())
        return values

    # which key it is about

    def arn(self, key_id):
        return f"arn:{self.place.partition}:kms:{self.place.region}:{self.place.account}:key/{key_id}"

    def missing(self, key_id):
        return ApiError("NotFoundException", f"Key '{self.arn(key_id)}' does not exist")

    def resolve(self, name):
        """The id in an id, an ARN, or an alias of either form."""
        if name.startswith("arn:"):
            parts = name.split(":", 5)
            if len(parts) != 6 or parts[2] != "kms" or parts[1] != self.place.partition:
                raise ApiError("InvalidArnException", f"Invalid arn {name}")
            if parts[3] != self.place.region:
                raise ApiError("NotFoundException", f"Invalid arn {parts[3]}")
            if parts[4] != self.place.account:
                raise ApiError("AccessDeniedException",
                               "The ciphertext refers to a customer master key that does not"
                               " exist, does not exist in this region, or you are not allowed"
                               " to access.")
            name = parts[5].removeprefix("key/")
        if name.startswith("alias/"):
            if name not in self.store.aliases:
                raise ApiError("NotFoundException", f"Alias {name} is not found.")
            return self.store.aliases[name]
        try:
            material.key_bytes(name)
        except ValueError:
            raise ApiError("NotFoundException", f"Invalid keyId '{name}'") from None
        return name

    def read(self, name):
        """A key as reads see it."""
        key_id = self.resolve(name)
        key = self.store.seen(key_id)
        if key is None:
            raise self.missing(key_id)
        return key

    def usable(self, name, usage):
        """A key for cryptography."""
        key = self.read(name)
        if key["state"] == "Disabled":
            raise ApiError("DisabledException", f"{self.arn(key['id'])} is disabled.")
        if key["state"] != "Enabled":
            raise self.wrong_state(key)
        if key["usage"] != usage:
            raise ApiError("InvalidKeyUsageException",
                           f"{self.arn(key['id'])} key usage is {key['usage']} which is not"
                           " valid for this operation.")
        return key

    def changeable(self, name):
        """A key to change: as it is, if it can be seen already."""
        key = self.store.current(self.read(name)["id"])
        if key is None:
            raise self.missing(self.resolve(name))
        if key["state"] == "PendingDeletion":
            raise self.wrong_state(key)
        return key

    # who may, as far as it is the key's

    def tags_for_policies(self, key_id):
        key = key_id and self.store.before(key_id, self.tag_lag)
        return key["tags"] if key else []

    def lets(self, key_id, action):
        key = key_id and self.store.current(key_id)
        if not key:
            return True
        if action in self.tag_actions and self.tags_for_policies(key_id) != key["tags"]:
            return False
        return any(fnmatch.fnmatchcase(action, rule) for rule in key.get("lets", ["*"]))

    def wrong_state(self, key):
        words = {"PendingDeletion": "pending deletion", "PendingImport": "pending import"}
        return ApiError("KMSInvalidStateException",
                        f"{self.arn(key['id'])} is {words.get(key['state'], 'not in that state')}.")

    # actions

    def CreateKey(self, values):
        spec = values.get("KeySpec", values.get("CustomerMasterKeySpec", "SYMMETRIC_DEFAULT"))
        origin = values.get("Origin", "AWS_KMS")
        if spec not in SPECS or origin not in ("AWS_KMS", "EXTERNAL"):
            raise ApiError("UnsupportedOperationException", "not in this double")
        usage, new_material = SPECS[spec]
        if values.get("KeyUsage", "ENCRYPT_DECRYPT") != usage:
            raise invalid_parameter(f"KeyUsage {values.get('KeyUsage', 'ENCRYPT_DECRYPT')} is not"
                                    f" compatible with KeySpec {spec}")
        tags = values.get("Tags", [])
        check_tags(tags)
        check_policy(values.get("Policy", FIRST_POLICY))
        if len(tags) > MAX_TAGS or self.full():
            raise ApiError("LimitExceededException", "You have reached the limit")
        multi_region = values.get("MultiRegion", False)
        key = {
            "id": f"mrk-{uuid.uuid4().hex}" if multi_region else str(uuid.uuid4()),
            "spec": spec, "usage": usage, "origin": origin, "multi_region": multi_region,
            "created": time.time(), "deletion": None,
            "state": "Enabled" if origin == "AWS_KMS" else "PendingImport",
            "description": values.get("Description", ""), "tags": tags,
            "policy": values.get("Policy", FIRST_POLICY), "material": new_material()}
        self.store.save(key)
        return {"KeyMetadata": self.metadata(key)}

    def new_managed_key(self, service, lets):
        """One that AWS makes for a service when that first needs it.  Its own
        policy leaves the account next to nothing."""
        made = self.CreateKey({"Description": f"Default key of {service}"})["KeyMetadata"]
        self.store.change(self.store.current(made["KeyId"]), manager="AWS", lets=lets)
        self.store.save_alias(f"alias/aws/{service}", made["KeyId"])
        return made["Arn"]

    def full(self):
        return self.max_keys is not None and len(self.store.all_seen()) >= self.max_keys

    def metadata(self, key):
        signs = key["usage"] == "SIGN_VERIFY"
        found = {
            "AWSAccountId": self.place.account, "KeyId": key["id"], "Arn": self.arn(key["id"]),
            "CreationDate": round(key["created"], 3), "Enabled": key["state"] == "Enabled",
            "Description": key["description"], "KeyUsage": key["usage"], "KeyState": key["state"],
            "Origin": key["origin"], "KeyManager": key.get("manager", "CUSTOMER"), "KeySpec": key["spec"],
            "CustomerMasterKeySpec": key["spec"], "MultiRegion": key["multi_region"],
            "SigningAlgorithms" if signs else "EncryptionAlgorithms":
            ["ECDSA_SHA_256"] if signs else ["SYMMETRIC_DEFAULT"]}
        if key["deletion"] is not None:
            found["DeletionDate"] = round(key["deletion"], 3)
        if key["origin"] == "EXTERNAL":
            found["ExpirationModel"] = "KEY_MATERIAL_DOES_NOT_EXPIRE"
        if key["multi_region"]:
            found["MultiRegionConfiguration"] = {
                "MultiRegionKeyType": "PRIMARY", "ReplicaKeys": [],
                "PrimaryKey": {"Arn": self.arn(key["id"]), "Region": self.place.region}}
        return found

    def DescribeKey(self, values):
        return {"KeyMetadata": self.metadata(self.read(values["KeyId"]))}

    def limit(self, values, most, usual):
        limit = values.get("Limit", usual)
        if limit > most:
            raise invalid_parameter(f"1 validation error detected: Value '{limit}' at 'limit'"
                                    " failed to satisfy constraint: Member must have value less"
                                    f" than or equal to {most}")
        return min(limit, self.max_page or limit)

    def ListKeys(self, values):
        keys = [{"KeyId": key["id"], "KeyArn": self.arn(key["id"])}
                for key in self.store.all_seen()]
        return page(keys, self.limit(values, 1000, 100), values.get("Marker"), "Keys")

    def ListResourceTags(self, values):
        tags = self.read(values["KeyId"])["tags"]
        return page(tags, self.limit(values, 50, 50), values.get("Marker"), "Tags")

    def GetKeyPolicy(self, values):
        return {"Policy": self.read(values["KeyId"])["policy"], "PolicyName": "default"}

    def TagResource(self, values):
        key = self.changeable(values["KeyId"])
        check_tags(values["Tags"])
        tags = {tag["TagKey"]: tag for tag in key["tags"] + values["Tags"]}
        if len(tags) > MAX_TAGS:
            raise ApiError("LimitExceededException", "Too many tags")
        self.store.change(key, tags=list(tags.values()))

    def UntagResource(self, values):
        key = self.changeable(values["KeyId"])
        self.store.change(key, tags=[tag for tag in key["tags"]
                                     if tag["TagKey"] not in values["TagKeys"]])

    def UpdateKeyDescription(self, values):
        self.store.change(self.changeable(values["KeyId"]), description=values["Description"])

    def GenerateDataKey(self, values):
        key = self.usable(values["KeyId"], "ENCRYPT_DECRYPT")
        if ("KeySpec" in values) == ("NumberOfBytes" in values):
            raise invalid_parameter("Please specify either number of bytes or key spec.")
        size = {"AES_256": 32, "AES_128": 16}.get(values.get("KeySpec"), values.get("NumberOfBytes"))
        if size is None or not 1 <= size <= 1024:
            raise invalid_parameter("a data key of a size that there is not")
        plaintext = material.os.urandom(size)
        return {"CiphertextBlob": encoded(material.encrypt(key, plaintext, values.get("EncryptionContext"))),
                "Plaintext": encoded(plaintext), "KeyId": self.arn(key["id"])}

    def Encrypt(self, values):
        key = self.usable(values["KeyId"], "ENCRYPT_DECRYPT")
        if not 1 <= len(values["Plaintext"]) <= 4096:
            raise invalid_parameter("1 validation error detected: Value at 'plaintext' failed to"
                                    " satisfy constraint: Member must have length less than or"
                                    " equal to 4096")
        blob = material.encrypt(key, values["Plaintext"], values.get("EncryptionContext"))
        return {"CiphertextBlob": encoded(blob), "KeyId": self.arn(key["id"]),
                "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}

    def Decrypt(self, values):
        wanted = self.usable(values["KeyId"], "ENCRYPT_DECRYPT") if "KeyId" in values else None
        made_by = material.made_by(values["CiphertextBlob"])
        if wanted is not None and material.key_bytes(wanted["id"]) != made_by:
            raise ApiError("IncorrectKeyException",
                           "The key ID in the request does not identify a CMK that can perform"
                           " this operation.")
        key = wanted or self.usable(self.by_bytes(made_by), "ENCRYPT_DECRYPT")
        plaintext = material.decrypt(key, values["CiphertextBlob"], values.get("EncryptionContext"))
        return {"KeyId": self.arn(key["id"]), "Plaintext": encoded(plaintext),
                "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}

    def by_bytes(self, made_by):
        for name in (str(uuid.UUID(bytes=made_by)), f"mrk-{made_by.hex()}"):
            if self.store.seen(name) is not None:
                return name
        raise ApiError("AccessDeniedException",
                       "The ciphertext refers to a customer master key that does not exist, does"
                       " not exist in this region, or you are not allowed to access.")

    def EnableKey(self, values):
        self.set_state(values["KeyId"], "Enabled")

    def DisableKey(self, values):
        self.set_state(values["KeyId"], "Disabled")

    def set_state(self, name, state):
        key = self.changeable(name)
        if key["state"] == "PendingImport":
            raise self.wrong_state(key)
        self.store.change(key, state=state)

    def ScheduleKeyDeletion(self, values):
        key = self.changeable(values["KeyId"])
        days = values.get("PendingWindowInDays", 30)
        if not 7 <= days <= 30:
            raise invalid_parameter("1 validation error detected: Value at 'pendingWindowInDays'"
                                    " failed to satisfy constraint: Member must have value"
                                    " between 7 and 30")
        key = self.store.change(key, state="PendingDeletion",
                                deletion=time.time() +
                                (0 if self.at_once else days * 86400))
        return {"KeyId": self.arn(key["id"]), "DeletionDate": round(key["deletion"], 3),
                "KeyState": "PendingDeletion", "PendingWindowInDays": days}

    def CancelKeyDeletion(self, values):
        key = self.store.current(self.read(values["KeyId"])["id"])
        if key is None:
            raise self.missing(self.resolve(values["KeyId"]))
        if key["state"] != "PendingDeletion":
            raise ApiError("KMSInvalidStateException",
                           f"{self.arn(key['id'])} is not pending deletion.")
        self.store.change(key, state="Disabled", deletion=None)
        return {"KeyId": self.arn(key["id"])}

    def Sign(self, values):
        key = self.usable(values["KeyId"], "SIGN_VERIFY")
        if values["SigningAlgorithm"] != "ECDSA_SHA_256":
            raise ApiError("InvalidKeyUsageException",
                           f"Algorithm {values['SigningAlgorithm']} and key spec {key['spec']}"
                           " are incompatible")
        digested = values.get("MessageType", "RAW") == "DIGEST"
        if digested and len(values["Message"]) != 32:
            raise invalid_parameter("Digest is invalid length for algorithm ECDSA_SHA_256.")
        if not 1 <= len(values["Message"]) <= 4096:
            raise invalid_parameter("Message is of a length that cannot be")
        return {"KeyId": self.arn(key["id"]), "SigningAlgorithm": "ECDSA_SHA_256",
                "Signature": encoded(material.sign(key, values["Message"], digested))}

    def GetPublicKey(self, values):
        key = self.read(values["KeyId"])
        if key["usage"] != "SIGN_VERIFY":
            raise ApiError("UnsupportedOperationException",
                           f"{self.arn(key['id'])} key spec is {key['spec']} which is not valid"
                           " for GetPublicKey.")
        key = self.usable(values["KeyId"], "SIGN_VERIFY")
        return {"KeyId": self.arn(key["id"]), "PublicKey": encoded(material.public_key(key)),
                "KeySpec": key["spec"], "CustomerMasterKeySpec": key["spec"],
                "KeyUsage": key["usage"], "SigningAlgorithms": ["ECDSA_SHA_256"]}

    def CreateAlias(self, values):
        name = values["AliasName"]
        if not re.fullmatch(r"alias/[A-Za-z0-9/_-]+", name) or name.startswith("alias/aws/"):
            raise ApiError("InvalidAliasNameException", "Alias name is not valid")
        if name in self.store.aliases:
            raise ApiError("AlreadyExistsException",
                           f"An alias with the name {name} already exists")
        self.store.save_alias(name, self.changeable(values["TargetKeyId"])["id"])

    def ListAliases(self, values):
        only = self.resolve(values["KeyId"]) if "KeyId" in values else None
        found = [{"AliasName": name, "TargetKeyId": key_id,
                  "AliasArn": self.arn(key_id).rpartition(":")[0] + ":" + name}
                 for name, key_id in sorted(self.store.aliases.items())
                 if only in (None, key_id) and self.store.seen(key_id) is not None]
        return page(found, self.limit(values, 100, 50), values.get("Marker"), "Aliases")


def encoded(data):
    return base64.b64encode(data).decode()
