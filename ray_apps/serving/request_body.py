"""The base of every JSON body that the service accepts."""

from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


class RequestBody(BaseModel):
    """A JSON object that refuses unknown fields, so that a misspelt option is not silently ignored.

    Null stands for the default of every optional field: generated clients send it for what is not set.
    """

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: Any) -> Any:
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        if not isinstance(body, dict):
            return body
        return {name: value for name, value in body.items() if value is not None or name not in optional}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Say in the OpenAPI schema that optional fields may be null."""
        schema = handler.resolve_ref_schema(handler(core))
        for name, value in schema.get("properties", {}).items():
            kinds = value.get("anyOf", [value])
            if name not in schema.get("required", ()) and {"type": "null"} not in kinds:
                shown = {key: value.pop(key) for key in ("title", "default", "description") if key in value}
                schema["properties"][name] = {"anyOf": [value, {"type": "null"}], **shown}
        return schema
