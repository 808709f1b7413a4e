"""IAM's policies of identities, as far as ours need them: statements with
actions, resources and conditions.  What is not known here is an error, so that
no policy passes because it was not understood.

Source: the IAM User Guide, "Policy evaluation logic" and "Condition operators"."""

import fnmatch
import json
import re

KNOWN = {"Sid", "Effect", "Action", "Resource", "Condition"}


def as_list(value):
    return value if isinstance(value, list) else [value]


def from_page(path, heading, words):
    """The first JSON after a bold heading of a page, with some words replaced."""
    with open(path) as file:
        rest = file.read().split(f"**{heading}**", 1)[1]
    text = re.search(r"```json\n(.*?)```", rest, re.DOTALL).group(1)
    for word, value in words.items():
        text = text.replace(word, value)
    return json.loads(text)


COMPARE = {
    "StringEquals": lambda value, wanted: value == wanted,
    "StringLike": fnmatch.fnmatchcase,
    "Bool": lambda value, wanted: value == wanted,
    "NumericGreaterThanEquals": lambda value, wanted: float(value) >= float(wanted),
}


def holds(operator, wanted, values):
    """One condition.  "values" are the request's, None if it has none."""
    every, _, name = operator.rpartition(":")
    if every not in ("", "ForAllValues", "ForAnyValue"):
        raise ValueError(f"an operator {operator}")
    if name == "Null":
        return (values is None) == (wanted == ["true"])
    if name.endswith("IfExists"):
        if values is None:
            return True
        name = name.removesuffix("IfExists")
    compare = COMPARE[name]
    if values is None:
        return every == "ForAllValues"
    if every == "" and len(values) != 1:
        raise ValueError("a key of several values wants ForAllValues or ForAnyValue")
    met = [any(compare(value, one) for one in wanted) for value in values]
    return any(met) if every == "ForAnyValue" else all(met)


def fits(statement, action, resource, context):
    if set(statement) - KNOWN:
        raise ValueError(f"a statement with {set(statement) - KNOWN}")
    if not any(fnmatch.fnmatchcase(action, rule) for rule in as_list(statement["Action"])):
        return False
    if not any(fnmatch.fnmatchcase(resource, rule) for rule in as_list(statement["Resource"])):
        return False
    return all(holds(operator, as_list(wanted), context.get(key))
               for operator, keys in statement.get("Condition", {}).items()
               for key, wanted in keys.items())


def allows(policy, action, resource, context):
    effects = {statement["Effect"] for statement in policy["Statement"]
               if fits(statement, action, resource, context)}
    if effects - {"Allow", "Deny"}:
        raise ValueError(f"an effect of {effects}")
    return effects == {"Allow"}


def context_of(action, values, tags):
    """What conditions may ask of a request for a key with these tags."""
    context = {f"aws:ResourceTag/{tag['TagKey']}": [tag["TagValue"]] for tag in tags}
    if "Tags" in values:
        context["aws:TagKeys"] = [tag["TagKey"] for tag in values["Tags"]]
        for tag in values["Tags"]:
            context[f"aws:RequestTag/{tag['TagKey']}"] = [tag["TagValue"]]
    if "TagKeys" in values:
        context["aws:TagKeys"] = values["TagKeys"]
    for name, value in values.get("EncryptionContext", {}).items():
        context[f"kms:EncryptionContext:{name}"] = [value]
    if action == "CreateKey":
        context["kms:KeyOrigin"] = [values.get("Origin", "AWS_KMS")]
        context["kms:MultiRegion"] = [str(values.get("MultiRegion", False)).lower()]
    if action == "ScheduleKeyDeletion":
        context["kms:ScheduleKeyDeletionPendingWindowInDays"] = [values.get("PendingWindowInDays", 30)]
    return context
