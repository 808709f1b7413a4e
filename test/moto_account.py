#!/usr/bin/python3
"""An account in moto, for t/kms_by_moto.pl.

    moto_account.py URL user        a user who may use KMS: prints access key and
                                    secret; from then on signatures are checked
    moto_account.py URL keys        each key: state, origin, spec, tags, as JSON

Environment: for "keys", the credentials that "user" printed.
"""

import json
import sys
import urllib.request

import boto3

POLICY = {"Version": "2012-10-17",
          "Statement": [{"Effect": "Allow", "Action": ["kms:*"], "Resource": "*"}]}


def make_user(url):
    iam = boto3.client("iam", endpoint_url=url, region_name="eu-north-1",
                       aws_access_key_id="any", aws_secret_access_key="any")
    iam.create_user(UserName="nomp")
    iam.put_user_policy(UserName="nomp", PolicyName="kms", PolicyDocument=json.dumps(POLICY))
    key = iam.create_access_key(UserName="nomp")["AccessKey"]
    urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset-auth", b"0",
                                                  {"Content-Type": "text/plain"})).close()
    print(key["AccessKeyId"], key["SecretAccessKey"])


def show_keys(url):
    kms = boto3.client("kms", endpoint_url=url, region_name="eu-north-1")
    for page in kms.get_paginator("list_keys").paginate():
        for key in page["Keys"]:
            about = kms.describe_key(KeyId=key["KeyId"])["KeyMetadata"]
            tags = kms.list_resource_tags(KeyId=key["KeyId"])["Tags"]
            print(json.dumps({"state": about["KeyState"], "origin": about["Origin"],
                              "spec": about["KeySpec"], "multi_region": about["MultiRegion"],
                              "tag": {tag["TagKey"]: tag["TagValue"] for tag in tags}}))


{"user": make_user, "keys": show_keys}[sys.argv[2]](sys.argv[1])
